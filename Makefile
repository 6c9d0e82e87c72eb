# Each target makes its own environment in .venv; nothing else on the machine is touched.
PYTHON ?= python3

.PHONY: demo test bench

demo: .venv/installed
	.venv/bin/pad demo

test: .venv/installed
	.venv/bin/pytest

bench: .venv/installed
	.venv/bin/python benchmarks/align_bench.py --plot
	.venv/bin/python benchmarks/significance_bench.py

.venv/installed: pyproject.toml constraints.txt setup.py CMakeLists.txt cmake/cuda.cmake $(wildcard csrc/* csrc/cpu/* csrc/cuda/*)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e '.[test]'
	touch .venv/installed
