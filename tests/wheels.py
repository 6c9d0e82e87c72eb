"""Installs wheels where there is no compiler, and runs tests of the ops with them: `python tests/wheels.py WHEEL ...`.

Each wheel goes into a fresh environment for each torch, with CXX=/bin/false and nothing but the environment on the
PATH. A torch is a version, which pip fetches, or VERSION=FOLDER: the folder of packages of an environment that has it
(and pytest, hypothesis, numpy) lends them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ("pytest", "hypothesis", "numpy")
TESTS = ("test_spans.py", "test_weights.py", "test_checks.py", "test_instruction_sets.py")
ONLY = "not alignment_kernels or float32"
DEFAULT = ("2.6.0", "2.9.1", "2.11.0", "2.13.0")


def seconds(*command, **options) -> float:
    """Time of a command that must succeed."""
    begin = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, **options)
    return time.perf_counter() - begin


def environment(place: Path, torch: str) -> tuple[Path, dict[str, str]]:
    """A fresh environment with this torch: its Python, and the variables to run it with."""
    version, _, lent = torch.partition("=")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    variables = {"PATH": str(python.parent), "CXX": "/bin/false", "CC": "/bin/false", "OMP_NUM_THREADS": "1"}
    variables |= {name: os.environ[name] for name in ("HOME", "ONEDNN_MAX_CPU_ISA") if name in os.environ}
    if lent:
        (packages,) = (place / "lib").glob("python*/site-packages")
        (packages / "lent.pth").write_text(f"{Path(lent).resolve()}\n")
    else:
        seconds(python, "-m", "pip", "install", "-q", f"torch=={version}", *RUNNER)
    found = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if found.partition("+")[0] != version:
        raise SystemExit(f"torch {version} was asked for, and {found} is there")
    return python, variables


def try_wheel(wheel: Path, torch: str, scratch: Path) -> str:
    """A line of the table: size, seconds to install, tests that passed and their seconds."""
    python, variables = environment(scratch / "environment", torch)
    installed = seconds(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel.resolve(), env=variables)
    work = scratch / "work"
    shutil.copytree(ROOT / "tests", work / "tests", ignore=shutil.ignore_patterns(".cache", "attack"))
    quiet = {"cwd": work, "env": variables, "capture_output": True, "text": True}
    info = subprocess.run([python, "-m", "pad_kernels.info", "--check"], check=True, **quiet).stdout
    pure = wheel.name.endswith("-none-any.whl")
    expected = r"native +missing: .*left out of this package, as asked" if pure else r"native +available"
    if not re.search(expected, info):
        raise SystemExit(f"{wheel.name}: expected {expected!r} in\n{info}")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", work]
    command += ["-m", "not slow and not gpu", "-k", ONLY, *(work / "tests" / name for name in TESTS)]
    begin = time.perf_counter()
    tests = subprocess.run(list(map(str, command)), check=False, **quiet)
    tested = time.perf_counter() - begin
    if tests.returncode:
        raise SystemExit(f"{wheel.name} with torch {torch}:\n{tests.stdout[-4000:]}{tests.stderr[-2000:]}")
    result = tests.stdout.strip().splitlines()[-1]
    passed = re.search(r"\d+ passed", result)
    size = wheel.stat().st_size / 1e6
    return f"| {wheel.name} | {size:.2f} | {torch.partition('=')[0]} | {installed:.1f} | {passed[0]} | {tested:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--torch", nargs="+", default=DEFAULT, help="VERSION or VERSION=FOLDER (default: %(default)s)")
    options = parser.parse_args()
    print("| wheel | MB | torch | install, s | tests | s |\n|---|---|---|---|---|---|", flush=True)
    for wheel in options.wheels:
        for torch in options.torch:
            with tempfile.TemporaryDirectory() as scratch:
                print(try_wheel(wheel, torch, Path(scratch)), flush=True)


if __name__ == "__main__":
    main()
