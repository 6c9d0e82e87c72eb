"""Tests of the ops on an emulated 64-bit ARM processor: `python tests/on_aarch64.py FOLDER`.

Cross-compiles the library, and runs tests of it under qemu with Debian's Python and torch for that processor, once for
each of --cpus: cortex-a72 has no instructions for bfloat16 and float16 arithmetic, max has them. What is fetched and
built (about 900 MB) stays in FOLDER, and is used again. Needs a Debian with these commands run once:

    dpkg --add-architecture arm64 && apt-get update
    apt-get install g++-aarch64-linux-gnu qemu-user
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from commands import run

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"
PACKAGES = (
    f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", f"libpython{PYTHON}-dev",
    "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0",
    "liblzma5", "libsqlite3-0", "libuuid1", "libcrypt1",
)  # fmt: skip
# pip resolves nothing for another processor, so that all are named.
WHEELS = (
    "torch==2.8.0", "numpy<2.3", "pytest", "hypothesis", "expecttest", "sympy", "mpmath", "networkx<3.6", "jinja2",
    "markupsafe", "fsspec", "filelock", "typing_extensions", "iniconfig", "packaging", "pluggy", "pygments", "attrs",
    "sortedcontainers",
)  # fmt: skip
TESTS = ("test_instruction_sets.py",)
ONLY = "baseline or native"


def missing() -> str | None:
    """What this machine lacks."""
    tools = ("aarch64-linux-gnu-g++", "qemu-aarch64", "apt-get", "dpkg", "cmake", "ninja")
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    if lacking:
        return f"no {', '.join(lacking)}"
    known = subprocess.run(["dpkg", "--print-foreign-architectures"], capture_output=True, text=True).stdout.split()
    return None if "arm64" in known else "arm64 is no architecture of this system's dpkg"


def fetch(folder: Path) -> None:
    """The system's libraries and Python in `root`, packages of Python in `site`."""
    debs, root, site = folder / "debs", folder / "root", folder / "site"
    if not root.exists():
        debs.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", "-q", *(f"{name}:arm64" for name in PACKAGES), cwd=debs)
        for deb in debs.glob("*.deb"):
            run("dpkg", "-x", deb, root.with_name("root.partial"))
        root.with_name("root.partial").rename(root)
    if not site.exists():
        platforms = [f"--platform=manylinux{version}_aarch64" for version in ("_2_28", "_2_27", "_2_17", "2014")]
        partial = site.with_name("site.partial")
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", partial, *platforms,
            "--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:", *WHEELS)  # fmt: skip
        partial.rename(site)


def build(folder: Path) -> Path:
    """The package with its library, and the tests."""
    package, headers = folder / "package", folder / "root" / "usr" / "include"
    for name in ("pad_kernels", "tests"):
        shutil.copytree(
            ROOT / name, package / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so", ".cache")
        )
    settings = {
        "CMAKE_BUILD_TYPE": "Release", "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "aarch64-linux-gnu.cmake",
        "CMAKE_CXX_FLAGS": f"-idirafter {headers}", "PAD_KERNELS_CUDA": "0", "Python_EXECUTABLE": sys.executable,
        "Python_INCLUDE_DIR": headers / f"python{PYTHON}", "PAD_KERNELS_OUTPUT": package / "pad_kernels",
        "PYTHON_MODULE_EXTENSION": f".cpython-{PYTHON.replace('.', '')}-aarch64-linux-gnu.so",
    }  # fmt: skip
    options = [f"-D{name}={value}" for name, value in settings.items()]
    run("cmake", "-S", ROOT, "-B", folder / "build", "-G", "Ninja", *options)
    run("cmake", "--build", folder / "build")
    return package


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", nargs="+", default=["cortex-a72", "max"], help="models of qemu-aarch64")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files in tests/ (default: %(default)s)")
    parser.add_argument("--only", default=ONLY, help="those whose names match, as pytest's -k")
    options = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    folder = options.folder.resolve()
    fetch(folder)
    package = build(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, folder / "site")))}
    environment.pop("PYTEST_ADDOPTS", None)
    python = folder / "root" / "usr" / "bin" / f"python{PYTHON}"
    failed = 0
    for cpu in options.cpus:
        print(f"== {cpu}", flush=True)
        command = ["qemu-aarch64", "-cpu", cpu, "-L", folder / "root", python, "-m", "pytest", "-q", "-p"]
        command += ["no:cacheprovider", "-c", os.devnull, "--rootdir", package, "-m", "not slow and not gpu"]
        tests = [package / "tests" / name for name in options.tests]
        failed |= run(*command, "-k", options.only, *tests, cwd=package, env=environment, check=False)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
