"""Runs the tests as on other processors: with the kernels that torch and its libraries would choose there.

    python tests/processor_matrix.py                        every row, every test, one thread and two
    python tests/processor_matrix.py --rows mkl-avx2 plain --threads 2 -- tests/test_alignment.py -k reference

Exits with 1 if a test fails in any row. What the processor lacks cannot be run and is named.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as tree
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
ROWS = {
    "plain": {},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "mkl-avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl-sse4_2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}
LEVELS = ["DEFAULT", "AVX2", "AVX512"]


class Result(NamedTuple):
    """Counts of one run, the names of the tests that failed, and what is to be read where it did not end well."""

    passed: int
    skipped: int
    failed: list[str]
    output: str


def is_possible(environment: dict[str, str]) -> bool:
    """Whether this processor has the instructions that torch is told to use; torch does not look."""
    own = torch.backends.cpu.get_cpu_capability()
    wanted = environment.get("ATEN_CPU_CAPABILITY", "default").upper()
    return wanted == "DEFAULT" or wanted in LEVELS[: LEVELS.index(own) + 1 if own in LEVELS else 0]


def run(environment: dict[str, str], threads: int, arguments: list[str]) -> Result:
    """The tests under these variables, in a process of their own."""
    own = {name: value for name, value in os.environ.items() if not any(name in row for row in ROWS.values())}
    # Threads that wait in a loop would slow one another down on a busy machine.
    own |= environment | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        cases = list(tree.parse(report).iter("testcase")) if report.exists() else []
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases
              if case.find("failure") is not None or case.find("error") is not None]  # fmt: skip
    skipped = sum(case.find("skipped") is not None for case in cases)
    if done.returncode and not failed:
        failed = [f"pytest ended with {done.returncode}"]
    return Result(max(len(cases) - len(failed), 0) - skipped, skipped, failed, done.stdout if failed else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows (default: all)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads (default: 1 2)")
    parser.add_argument("--show-output", action="store_true", help="print what pytest says of a row that fails")
    parser.add_argument("tests", nargs="*", help="test files; any arguments of pytest after -- (default: all tests)")
    options = parser.parse_args()
    print(f"{'row':16} {'threads':>7} {'passed':>7} {'failed':>7} {'skipped':>7} {'seconds':>7}", flush=True)
    any_failed = False
    for row in options.rows:
        for threads in options.threads:
            if not is_possible(ROWS[row]):
                print(f"{row:16} {threads:7} this processor lacks the instructions", flush=True)
                continue
            start = time.monotonic()
            passed, skipped, failed, output = run(ROWS[row], threads, options.tests)
            seconds = time.monotonic() - start
            print(f"{row:16} {threads:7} {passed:7} {len(failed):7} {skipped:7} {seconds:7.0f}", flush=True)
            for name in failed:
                print(f"    {name}", flush=True)
            if options.show_output or (failed and not passed):
                print(output, end="", flush=True)
            any_failed |= bool(failed)
    return int(any_failed)


if __name__ == "__main__":
    sys.exit(main())
