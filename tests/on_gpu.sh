#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, benchmarks. A step that fails does not stop those after it.
#   tests/on_gpu.sh [RESULTS]
# STEPS="build info tests"  some of the steps (default: all); a machine with a time limit takes them in several calls,
#                           with one ENVIRONMENT=FOLDER for the packages, which is then kept
# WHEELS=FOLDER             packages come from there, for a machine without an index
# The torch of the python at hand is used; the rest goes to an environment on top of it.
set -uo pipefail
cd "$(dirname "$0")/.."
results=$(realpath -m "${1:-runs/gpu}")
mkdir -p "$results"
if [ -z "${ENVIRONMENT:-}" ]; then
  ENVIRONMENT=$(mktemp -d)
  trap 'rm -rf "$ENVIRONMENT"' EXIT
fi
base=${PYTHON:-python3}
python=$ENVIRONMENT/bin/python
failed=()

packages_of() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

step() {
  local name=$1
  shift
  case " ${STEPS:-$name} " in *" $name "*) ;; *) return ;; esac
  printf '\n== %s (%s s so far)\n' "$name" "$SECONDS"
  timeout "${STEP_SECONDS:-600}" "$@" 2>&1 | tee -a "$results/log.txt" | tail -n 40
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}

install=("$python" -m pip install --quiet --disable-pip-version-check)

build() {
  "$base" -m venv --system-site-packages "$ENVIRONMENT" || return
  # The python at hand may be an environment itself, whose packages --system-site-packages does not show.
  packages_of "$base" > "$(packages_of "$python")/base.pth"
  rm -rf "$(packages_of "$python")"/setuptools*  # of before 3.12, too old to build with
  export PAD_KERNELS_REQUIRE_NATIVE=1
  if [ -z "${WHEELS:-}" ]; then
    "${install[@]}" -e '.[train,demo,bench]' pytest hypothesis expecttest
    return
  fi
  # One by one: what is not there is left out, and the tests that need it are skipped.
  for package in cmake ninja pybind11 setuptools pytest hypothesis expecttest numpy rich matplotlib transformers accelerate \
    safetensors soundfile soxr tqdm tyro pyyaml; do
    "$python" -m pip show --quiet "$package" 2> /dev/null ||
      "${install[@]}" --no-index --find-links "$WHEELS" "$package" || echo "left out: $package"
  done
  PATH="$ENVIRONMENT/bin:$PATH" "${install[@]}" --no-build-isolation --no-deps -e .
}
export -f build packages_of
export ENVIRONMENT base python WHEELS

step build bash -c "install=(${install[*]}); build"
step info "$python" -m pad_kernels.info --check
step tests "$python" -m pytest -q -m "gpu and not slow" -p no:cacheprovider
losses=("$python" benchmarks/align_bench.py --device cuda --seconds 1)
step losses "${losses[@]}" --sizes gpu --output "$results/align_cuda.json"
step losses_more "${losses[@]}" --sizes gpu-long gpu-many --providers eager eager-scaled sdpa ours ours-native ours-triton \
  --output "$results/align_cuda_more.json"
step significance "$python" benchmarks/significance_bench.py --device cuda --output "$results/significance_cuda.json"
for precision in float32 bfloat16; do
  step "step_$precision" "$python" benchmarks/step_bench.py --device cuda --precision "$precision" \
    --output "$results/step_cuda_$precision.json"
done
step soak "$python" -m pytest -q -m "gpu and slow" -p no:cacheprovider

printf '\n%s s; results in %s\n' "$SECONDS" "$results"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
