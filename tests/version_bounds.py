"""The fast tests with the lowest versions of all dependencies that pyproject.toml allows, or with the newest.

    python tests/version_bounds.py lowest
    python tests/version_bounds.py newest --environments ~/.cache/pad

Makes an environment, from which only installed packages are used, and this checkout. Where FOLDER (or
PAD_ENVIRONMENTS) is given the environment stays there, and the next run with the same versions takes it as it is, or
brings it up to date. Without the space that torch with CUDA takes it says 'skipped' and how much is free.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import tomllib
from commands import run

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("triton", "train")
RUNNER = ("pytest", "pytest-xdist", "hypothesis")
# The interpreter of early Triton makes numbers of arrays in a way that later NumPy refuses.
NUMPY = "numpy<2.3"
GIGABYTES = 11  # of an environment, and of what pip fetches for it
# One or two of each kind: the ops on every backend, the recorder on every family, loading, a run of `pad distill`.
TESTS = (
    "tests/test_reference.py",
    "tests/test_pad_families.py",
    "tests/test_pad_recording.py",
    "tests/test_pad_loading.py",
    "tests/test_pad_teacher_cache.py",
    "tests/test_pad_attention.py",
)
UNDER_TRITON = ("tests/triton_interpreted.py", "tests/triton_interpreted_ops.py")
UNDER_TRITON_ONLY = "test_significance or test_one_gradient_alone or test_spans_beyond_the_frames_are_clipped"


class NoSpace(Exception):
    """What is free, and what is needed."""


def requirements() -> dict[str, str]:
    """The lowest version of each package that the package needs at run time, '' where pyproject.toml names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    found = {}
    for line in lines:
        name, _, bound = re.fullmatch(r"([\w-]+)(>=([\w.]+))?(;.*)?", line.replace(" ", "").split(";")[0]).groups()[:3]
        found[name] = bound or ""
    return found


def packages(which: str) -> list[str]:
    """What pip is told to install, but for Triton, which torch pins."""
    wanted = {name: bound for name, bound in requirements().items() if name != "triton"}
    if which == "newest":
        return [*wanted, *RUNNER]
    missing = [name for name, bound in wanted.items() if not bound]
    if missing:
        raise SystemExit(f"pyproject.toml: no lowest version of {', '.join(missing)}")
    return [*(f"{name}=={bound}" for name, bound in wanted.items()), *RUNNER, NUMPY]


def environment(folder: Path, which: str) -> tuple[Path, Path]:
    """An environment with these versions, made or brought up to date in `folder`: its Python, and where Triton lies.

    The lowest Triton lies apart: the lowest torch asks for an older one, and compiles nothing with that which is
    served. The newest is the one that the newest torch brings.
    """
    wanted = packages(which)
    triton = f"triton=={requirements()['triton']}"
    name = hashlib.sha256(" ".join([sys.version, *wanted, triton]).encode()).hexdigest()[:12]
    place = folder / f"{which}-{name}"
    python, complete = place / "bin" / "python", place / "complete"
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile", "--no-cache-dir")
    pip += ("--upgrade",) if which == "newest" else ()
    if not complete.exists():
        folder.mkdir(parents=True, exist_ok=True)
        free = min(shutil.disk_usage(path).free for path in (folder, tempfile.gettempdir())) / 1e9
        if free < GIGABYTES:
            raise NoSpace(f"{free:.1f} GB are free, {GIGABYTES} are needed")
        run(sys.executable, "-m", "venv", "--clear", place)
    if which == "newest" or not complete.exists():
        run(*pip, *wanted)
    if which == "lowest" and not complete.exists():
        run(*pip, "--no-deps", "--target", place / "triton", triton)
    complete.touch()
    return python, place / "triton"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("which", choices=["lowest", "newest"])
    parser.add_argument("--environments", type=Path, default=os.environ.get("PAD_ENVIRONMENTS"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            python, triton = environment(Path(options.environments or scratch).expanduser().resolve(), options.which)
        except NoSpace as reason:
            print(f"skipped: {reason}")
            return 0
        run(python, "-m", "pip", "list")
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        variables.pop("PYTEST_ADDOPTS", None)
        test = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "-o", "addopts=")
        failed = run(*test, "-n", "2", *TESTS, cwd=ROOT, env=variables, check=False)
        interpreted = {**variables, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(triton), str(ROOT)])}
        only = ("-k", UNDER_TRITON_ONLY)
        failed |= run(*test, "-n", "2", *UNDER_TRITON, *only, cwd=ROOT, env=interpreted, check=False)
        # The interpreter takes what the compiler may not.
        interpreted.pop("TRITON_INTERPRET")
        compiled = (python, ROOT / "tests" / "triton_offline.py", "--few", "--chips", "sm_80")
        failed |= run(*compiled, cwd=ROOT, env=interpreted, check=False)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
