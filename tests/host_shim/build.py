"""Runs the tests of the ops on the CUDA sources, built for the CPU: `python tests/host_shim/build.py`.

`--sanitize address,undefined` or `--sanitize thread` looks for bad accesses or for races, on a few cases;
what follows `--` goes to pytest.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent.resolve()
ROOT = FOLDER.parent.parent
FILES = ("test_alignment.py", "test_spans.py", "test_pooling.py", "test_determinism.py")
CHOSEN = "native and not float64"  # which the CUDA kernels leave to the reference
# A few cases for the sanitizers, which are slow; races most of all.
FEW = {
    "address": "test_masks or test_layouts or test_empty or test_spans_beyond or test_zero_and_tiny"
    " or worked_example or left_padding or strided or room_beyond or (test_shapes and float16)",
    "thread": "(test_masks and ragged) or (test_one_gradient and speech) or worked_example or left_padding"
    " or (test_shapes and float32 and left)",
}


def own_tools_first() -> str:
    """A PATH on which cmake and ninja of this environment come before those of the system."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def build(folder: Path, sanitize: str = "", shim: bool = True) -> Path:
    """The library in `folder`; raises RuntimeError with what the compiler says. `shim`: with the CUDA sources."""
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DPAD_KERNELS_OUTPUT={folder}",
        f"-DPAD_KERNELS_SANITIZE={sanitize}", f"-DPAD_KERNELS_HOST_SHIM={FOLDER}" if shim else "-DPAD_KERNELS_CUDA=0",
    ]  # fmt: skip
    variables = os.environ | {"PATH": own_tools_first()}
    for command in (configure, ["cmake", "--build", str(folder / "build")]):
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return next(folder.glob("_native*"))


def _runtime(name: str) -> str:
    command = ["g++", f"-print-file-name=lib{name}.so"]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()


def environment(library: Path, sanitize: str = "") -> dict[str, str]:
    """What the tests' process needs to load the library."""
    variables = os.environ | {"PAD_KERNELS_HOST_SHIM": str(library), "PYTHONPATH": str(FOLDER.parent)}
    if sanitize:
        name = "tsan" if "thread" in sanitize else "asan"
        # The C++ runtime too: the sanitizer looks up what it intercepts when it starts.
        variables["LD_PRELOAD"] = f"{_runtime(name)} {_runtime('stdc++')}"
        variables["ASAN_OPTIONS"] = "detect_leaks=0"
        variables["TSAN_OPTIONS"] = "halt_on_error=1 report_signal_unsafe=0 ignore_noninstrumented_modules=1"
        variables["OMP_NUM_THREADS"] = "1"
    return variables


def run(sanitize: str = "", arguments: tuple[str, ...] = ()) -> int:
    """Builds, tests, and gives pytest's exit status."""
    chosen = CHOSEN
    if sanitize:
        chosen += f" and ({FEW['thread' if 'thread' in sanitize else 'address']})"
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder), sanitize)
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "host_shim.plugin", "-p", "no:cacheprovider",
            "--capture=sys",  # a sanitizer's report goes past Python
            "-k", chosen, *(str(FOLDER.parent / name) for name in FILES), *arguments,
        ]  # fmt: skip
        if "thread" in sanitize:  # ThreadSanitizer wants addresses where it expects them
            command = ["setarch", platform.machine(), "-R", *command]
        return subprocess.run(command, env=environment(library, sanitize), cwd=ROOT).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", default="", help="value of g++'s -fsanitize")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    sys.exit(run(options.sanitize, tuple(options.arguments)))
