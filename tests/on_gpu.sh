#!/usr/bin/env bash
# All that needs a GPU, in one run of at most LIMIT seconds: build, tests, benchmarks. A step that fails stops no other.
# Tests run beside one another; what is timed, and what watches the memory of the GPU, runs alone.
#   tests/on_gpu.sh [RESULTS]            results go to RESULTS (default: runs/gpu): at most 8 files, each step's at once
#   tests/on_gpu.sh --dry-run [RESULTS]  every step on the CPU at tiny sizes: to find mistakes, not to measure
# LIMIT=570       seconds for all; with less every step gets less, and the last ones are left out where time is up
# STEPS="..."     some of: build triton info native training compile_tests sanitizer losses significance step soak
#                 compiled
# WHEELS=FOLDER   wheels of what the machine lacks, where it has no package index
# ARCH=90         what CUDA is compiled for (default: the GPU at hand)
# TRITON_CACHE_DIR=FOLDER  kernels that Triton has compiled before (default: none)
# PYTHON=python3  has torch, transformers, rich, pytest, hypothesis, pybind11; cmake, ninja and nvcc are on the PATH
# Exit code: 0 all passed; 1 a step failed or ran out of time; 3 none did, but some were left out.
# Nothing is installed, and nothing is written to the checkout.
set -uo pipefail
dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
results=$(realpath -m "${1:-runs/gpu}")
root=$(realpath "$(dirname "$0")/..")
wheels=${WHEELS:+$(realpath -m "$WHEELS")}
limit=${LIMIT:-$([ -n "$dry_run" ] && echo 1800 || echo 570)}  # a dry run takes 3 minutes, on a busy machine more
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
mkdir -p "$results"
rm -f "$results"/{log,summary,build}.txt "$results/tests.json"
scratch=$(mktemp -d)
build_job=
finish() { [ -z "$build_job" ] || kill "$build_job" 2> /dev/null; rm -rf "$scratch"; }
trap finish EXIT
log=$results/log.txt

# A copy of the package, so that the library built here goes beside it and the checkout stays as it is. Nothing runs in
# the checkout, where `python -m` would find the package without its library.
site=$scratch/site
mkdir -p "$site" "$scratch/here"
cp -r "$root/pad" "$root/pad_kernels" "$site/"
cd "$scratch/here" || exit 2
rm -f "$site"/pad_kernels/_native*
export PYTHONPATH=$site:$root/tests:$root PATH=$(dirname "$python"):$PATH:/usr/local/cuda/bin
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 MPLBACKEND=Agg
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton} TORCHINDUCTOR_CACHE_DIR=$scratch/inductor OUTCOMES=$results/tests.json
unset PAD_KERNELS_BACKEND TRITON_INTERPRET PYTEST_ADDOPTS
device=cuda
workers=(14 5)  # of a test step alone, and of one beside others
threads=4
if [ -n "$dry_run" ]; then
  device=dry-run
  workers=(2 2)
  threads=1
  export PAD_KERNELS_TEST_DEVICE=cpu OMP_NUM_THREADS=1
fi

say() { printf '%s\n' "$*" | tee -a "$log"; }
wanted() { case " ${STEPS:-$1} " in *" $1 "*) ;; *) return 1 ;; esac; }
scaled() { echo $(($1 * limit / 570)); }
note() { printf '%s\t%s\t%s\n' "$@" >> "$scratch/steps.tsv"; }  # step, seconds, how it ended

# step NAME SECONDS COMMAND...: its output goes to the log line by line, and the end of it to the terminal
step() {
  local name=$1 word most left=$((limit - SECONDS - 4)) begin=$SECONDS code
  most=$(scaled "$2")
  shift 2
  wanted "$name" || return 0
  [ "$left" -ge "$most" ] || most=$left
  if [ "$most" -lt 8 ]; then
    say "== $name: left out, $left s are left"
    note "$name" 0 "left out"
    return 0
  fi
  for word in "$@"; do  # what an earlier run has left is not taken for this one's
    case $word in "$results"/*.json) rm -f "$word" ;; esac
  done
  say "== $name (at $SECONDS s, at most $most s): $*"
  OUTCOMES_OF=$name timeout --signal=INT --kill-after=5 "$most" "$@" 2>&1 | tee -a "$log" | tail -n "${lines:-12}"
  code=${PIPESTATUS[0]}
  case $code in 0) code=ok ;; 124 | 137) code="out of time" ;; *) code="failed ($code)" ;; esac
  note "$name" $((SECONDS - begin)) "$code"
}

# beside NAME SECONDS COMMAND...: a step that others run beside; `together` waits for all of them
beside() {
  (log=$scratch/$1.log step "$@") > "$scratch/$1.out" &
  jobs_beside+=("$!:$1")
}
jobs_beside=()
together() {
  local one
  for one in "${jobs_beside[@]}"; do
    wait "${one%%:*}"
    cat "$scratch/${one#*:}.out"
    cat "$scratch/${one#*:}.log" >> "$log" 2> /dev/null
  done
  jobs_beside=()
}

seconds_for() {  # seconds_for SECONDS REST: what a step of so many seconds has for its cases, the rest taken off
  local most left=$((limit - SECONDS - 4))
  most=$(scaled "$1")
  echo $(((most < left ? most : left) - $2))
}

interpreted=()
[ -z "$dry_run" ] || interpreted=(env TRITON_INTERPRET=1)

say "on_gpu.sh${dry_run:+ --dry-run}: at most $limit s, results in $results"
if [ -n "$wheels" ]; then
  install=("$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check
    --target "$site")
  # All in one call; where one of them does not fit this python, one by one.
  "${install[@]}" "$wheels"/*.whl >> "$log" 2>&1 || for wheel in "$wheels"/*.whl; do
    "${install[@]}" "$wheel" >> "$log" 2>&1 || say "does not fit: $wheel"
  done
fi
pytest=("$python" -m pytest -q --tb=short -p no:cacheprovider -p outcomes
  -c "$root/pyproject.toml" -o pythonpath= -o addopts=)
spread=()
if "$python" -c "import xdist" 2> /dev/null; then spread=(-n); fi
tests() {  # tests WORKERS MARKER ARGUMENTS...: the words of a command
  words=("${pytest[@]}" ${spread[@]+"${spread[@]}" "$1"} -m "$2" "${@:3}")
}
"$python" - <<'PYTHON' 2>&1 | tee -a "$log"
import importlib.util
needed = "torch triton transformers rich pytest hypothesis xdist pybind11 soundfile soxr tyro accelerate safetensors yaml tqdm"
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
print("missing, what needs them will fail:" if missing else "all packages are there", *missing)
PYTHON

build() {
  local cuda=(-DPAD_KERNELS_CUDA=0)
  if [ -z "$dry_run" ]; then
    local found='import torch; print("{}{}".format(*torch.cuda.get_device_capability()))'
    cuda=(-DPAD_KERNELS_CUDA=1 "-DPAD_KERNELS_CUDA_ARCHS=${ARCH:-$("$python" -c "$found")}")
  fi
  cmake -S "$root" -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=Release "${cuda[@]}" "-DPython_EXECUTABLE=$python" \
    "-DPAD_KERNELS_OUTPUT=$scratch/library" || return
  # A dry run takes the library of the checkout where this python has one: the compiler was tried when that was built.
  local there suffix
  suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  there=$root/pad_kernels/_native$suffix
  if [ -n "$dry_run" ] && [ -e "$there" ]; then
    mkdir -p "$scratch/library" && cp "$there" "$scratch/library/" && echo "taken from the checkout"
    return
  fi
  cmake --build "$scratch/build"
}

built() {  # the library is there, and has what it was built for
  tail -n 4 "$results/build.txt"
  cp "$scratch"/library/_native*.so "$site/pad_kernels/" || { echo "BUILD FAILED: see build.txt"; return 1; }
  "$python" - "${dry_run:+cpu}" <<'PYTHON'
import os
import sys
from pad_kernels import info
if not info.__file__.startswith(os.environ["site"]):
    sys.exit(f"BUILD FAILED: the library is not beside {info.__file__}")
device = sys.argv[1] or "cuda"
found = info.report()
print("CUDA kernels:", found["cuda_kernels"])
if "native" not in found["ops"].get(device, {}).get("alignment_forward", []):
    sys.exit(f"BUILD FAILED: the native backend does not serve {device}: {found['backends']['native']}")
PYTHON
}
export -f built
export scratch site results python dry_run

if wanted build; then
  build > "$results/build.txt" 2>&1 &
  build_job=$!
fi

quick="gpu and not slow"
tests "${workers[0]}" "$quick" "$root"/tests/test_gpu.py -k "triton or test_significance"
step triton 130 "${interpreted[@]}" "${words[@]}"

if [ -n "$build_job" ]; then
  while kill -0 "$build_job" 2> /dev/null && [ "$SECONDS" -lt $((limit / 2)) ]; do sleep 0.5; done
  if kill -0 "$build_job" 2> /dev/null; then say "BUILD FAILED: not done after $SECONDS s"; kill "$build_job"; fi
  wait "$build_job" || say "BUILD FAILED: $(grep -m 1 -i error "$results/build.txt")"
  build_job=
  step build 30 bash -c built
elif compgen -G "$root/pad_kernels/_native*" > /dev/null; then
  cp "$root"/pad_kernels/_native* "$site/pad_kernels/"
fi

beside info 60 "$python" -m pad_kernels.info --check
tests "${workers[1]}" "$quick" "$root"/tests/test_gpu.py -k "not triton and not test_significance and not compiled"
beside native 120 "${words[@]}"
tests "${workers[1]}" "$quick" "$root"/tests/test_pad_gpu.py
beside training 110 "${words[@]}"
tests "${workers[1]}" "$quick" "$root"/tests/test_gpu.py -k compiled
beside compile_tests 110 "${words[@]}"
tests 0 "gpu and slow" "$root"/tests/test_gpu.py -k sanitizer
beside sanitizer 120 "${words[@]}"
together

directions=(forward forward+backward)
dtypes=(bfloat16 float32)
levels=(token span global)
modes=(hard soft)
[ -z "$dry_run" ] || directions=(forward+backward) dtypes=(bfloat16) modes=(hard)
bench=(--device "$device" --threads "$threads")
step losses 150 "${interpreted[@]}" "$python" "$root"/benchmarks/align_bench.py "${bench[@]}" \
  --output "$results/align.json" --seconds 0.25 --seconds-total "$(seconds_for 150 8)" \
  --sizes gpu gpu-many gpu-long --dtypes "${dtypes[@]}" --directions "${directions[@]}" --levels "${levels[@]}" \
  --modes "${modes[@]}" --providers eager eager-scaled sdpa ours
step significance 40 "${interpreted[@]}" "$python" "$root"/benchmarks/significance_bench.py "${bench[@]}" --seconds 0.5 \
  --seconds-total "$(seconds_for 40 10)" --output "$results/significance.json"
step step 65 "$python" "$root"/benchmarks/step_bench.py "${bench[@]}" --output "$results/step.json" \
  --precision bfloat16 --rounds 5 --seconds 4 --seconds-total "$(seconds_for 65 20)" \
  --cases "15 s x 32" "10 s x 4"
tests 0 "gpu and slow" "$root"/tests/test_gpu.py -k "not sanitizer"
step soak 60 "${interpreted[@]}" "${words[@]}"
levels=(span token global)  # the other packages, which tune themselves for long, come last
[ -z "$dry_run" ] || levels=(token)
step compiled 90 "$python" "$root"/benchmarks/align_bench.py "${bench[@]}" --output "$results/compiled.json" \
  --seconds 0.3 --seconds-total "$(seconds_for 90 30)" --no-kernels --sizes gpu \
  --dtypes bfloat16 --directions forward+backward --levels "${levels[@]}" --modes "${modes[@]}" \
  --providers torch.compile ours late-interaction-kernels flash-maxsim

say "== $SECONDS s"
"$python" -m benchmarks.summary "$scratch/steps.tsv" "$results" 2>&1 | tee "$results/summary.txt"
code=${PIPESTATUS[0]}
cat "$results/summary.txt" >> "$log"
exit "$code"
