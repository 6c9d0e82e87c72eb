"""Runs tests of the ops on the CPU sources, built with sanitizers: `python tests/attack/sanitizers.py`.

Once with each instruction set; one that the processor lacks is named. What follows `--` goes to pytest.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TESTS, ROOT = FOLDER.parent, FOLDER.parent.parent
sys.path.insert(0, str(TESTS))
from host_shim.build import build, environment  # noqa: E402

SANITIZE = "address,undefined"
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
FILES = ("alignment", "spans", "pooling", "significance", "weights", "loss", "ties")
# Spans within spans, and sizes of the width of a model, take minutes.
CHOSEN = "(native or not backend) and not reference and not spans_within and not 768 and not any_shape"
LACKING = 3
OVERRUN = """
import sanitized, sys, torch
bounds = torch.zeros(4, dtype=torch.int32).data_ptr()
sys.modules["pad_kernels._native"].spans_fit(start=bounds, end=bounds, count=10**6, frames=9)
"""


def child(library: Path, instruction_set: str, command: list[str], **options) -> int:
    """The exit status of a command of Python that uses the library."""
    variables = environment(library, SANITIZE)
    paths = (str(TESTS), str(FOLDER), str(ROOT))
    variables |= {"PYTHONPATH": os.pathsep.join(paths), "PAD_ATTACK_LIBRARY": str(library)}
    variables |= {"PAD_ATTACK_INSTRUCTION_SET": instruction_set, "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run([sys.executable, *command], env=variables, cwd=ROOT, **options).returncode


def run(library: Path, instruction_set: str, arguments: list[str]) -> int:
    """The exit status of pytest, or LACKING."""
    found = child(library, instruction_set, ["-c", "import sanitized"])
    if found:
        return found
    if child(library, instruction_set, ["-c", OVERRUN], stderr=subprocess.DEVNULL) == 0:
        raise RuntimeError("the sanitizer did not see a read beyond the end of a tensor")
    files = [str(TESTS / f"test_{name}.py") for name in FILES]
    options = ["-q", "-p", "sanitized", "-p", "no:cacheprovider", "-o", "addopts=", "--capture=sys", "-k", CHOSEN]
    return child(library, instruction_set, ["-m", "pytest", *options, *files, *arguments])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="a library built before, by this script with --keep")
    parser.add_argument("--keep", type=Path, help="folder that keeps the library")
    parser.add_argument("--instruction-sets", nargs="+", default=INSTRUCTION_SETS, choices=INSTRUCTION_SETS)
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        library = options.library or build(options.keep or Path(scratch), SANITIZE, shim=False)
        statuses = {name: run(library.resolve(), name, options.arguments) for name in options.instruction_sets}
    for name, status in statuses.items():
        print(f"{name}: {'clean' if status == 0 else 'not on this processor' if status == LACKING else 'FAILED'}")
    return int(any(status not in (0, LACKING) for status in statuses.values()))


if __name__ == "__main__":
    sys.exit(main())
