#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build, tests, benchmarks. A step that fails does not stop those after it.
#   tests/on_gpu.sh [RESULTS]      WHEELS=FOLDER: packages come from there, for a machine without an index
# The torch of the python at hand is used; the rest goes to an environment on top of it.
set -uo pipefail
cd "$(dirname "$0")/.."
results=$(realpath -m "${1:-runs/gpu}")
mkdir -p "$results"
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv --system-site-packages "$environment"
python=$environment/bin/python
failed=()

step() {
  local name=$1
  shift
  printf '\n== %s (%s s so far)\n' "$name" "$SECONDS"
  timeout "${STEP_SECONDS:-600}" "$@" 2>&1 | tee "$results/$name.log" | tail -n 40
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}

install=("$python" -m pip install --quiet --disable-pip-version-check)
if [ -n "${WHEELS:-}" ]; then
  # One by one: what is not there is left out, and the tests that need it are skipped.
  for package in cmake ninja pybind11 setuptools pytest hypothesis expecttest numpy rich matplotlib transformers accelerate \
    safetensors soundfile soxr tqdm tyro pyyaml; do
    "$python" -m pip show --quiet "$package" 2> /dev/null ||
      "${install[@]}" --no-index --find-links "$WHEELS" "$package" || echo "left out: $package"
  done
  export PATH="$environment/bin:$PATH"
  step build env PAD_KERNELS_REQUIRE_NATIVE=1 "${install[@]}" --no-build-isolation --no-deps -e .
else
  step build env PAD_KERNELS_REQUIRE_NATIVE=1 "${install[@]}" -e '.[train,demo,bench]' pytest hypothesis expecttest
fi

step info "$python" -m pad_kernels.info --check
step tests "$python" -m pytest -q -m "gpu and not slow" -p no:cacheprovider
step losses "$python" benchmarks/align_bench.py --device cuda --output "$results/align_cuda.json"
step significance "$python" benchmarks/significance_bench.py --device cuda --output "$results/significance_cuda.json"
for precision in float32 bfloat16; do
  step "step_$precision" "$python" benchmarks/step_bench.py --device cuda --precision "$precision" \
    --output "$results/step_cuda_$precision.json"
done
step soak "$python" -m pytest -q -m "gpu and slow" -p no:cacheprovider

printf '\n%s s; results in %s\n' "$SECONDS" "$results"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
