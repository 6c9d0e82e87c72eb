"""What the environment asks of the build, and what went wrong with one, in a line. For setup.py."""

import os
import re
import shutil
from pathlib import Path

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LONGEST_REASON = 400  # characters


def asked(name):
    """Whether a variable asks for something: True, False, or None where it is not set; SystemExit for another word."""
    given = os.environ.get(name, "").strip().lower()
    if given and given not in _YES + _NO:
        raise SystemExit(f"error: {name}: got {os.environ[name]!r}, expected 1 or 0")
    return None if not given else given in _YES


def architectures():
    """PAD_KERNELS_CUDA_ARCHS as CMake takes it, "80;90", lowest first; None where it is not set or empty."""
    name = "PAD_KERNELS_CUDA_ARCHS"
    found = {word.replace(".", "") for word in re.split(r"[;,\s]+", os.environ.get(name, "")) if word}
    if not all(re.fullmatch(r"\d{2,3}", word) for word in found):
        raise SystemExit(f"error: {name}: got {os.environ[name]!r}, expected numbers, as 80;90")
    return ";".join(sorted(found, key=int)) or None


def environment():
    """That of CMake: messages in English, and nvcc where PyTorch's CUDA_HOME says that it is."""
    found = dict(os.environ, LC_ALL="C.UTF-8")
    nvcc = Path(found.get("CUDA_HOME", "")) / "bin" / "nvcc"
    if "CUDACXX" not in found and found.get("CUDA_HOME") and shutil.which("nvcc") is None and nvcc.is_file():
        found["CUDACXX"] = str(nvcc)
    return found


def first_error(output):
    """What went wrong, in a line, from the output of CMake or the compiler."""
    if "No CMAKE_CXX_COMPILER could be found" in output:
        return "no C++ compiler was found when the package was installed"
    if "Unknown argument --fresh" in output or re.search(r"CMake 3\.\d+.* or higher is required", output):
        return "CMake 3.24 or newer is needed"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if "error:" in line or line.startswith(("ModuleNotFoundError", "ninja: error")) or "No module named" in line:
            return line[:_LONGEST_REASON]
    for number, line in enumerate(lines):
        if line.startswith("CMake Error"):
            # The message takes several lines, up to where CMake says from where it was called.
            told = lines[number : number + 12]
            last = next((i for i, each in enumerate(told) if each.startswith(("Call Stack", "CMake will"))), len(told))
            return " ".join(told[:last])[:_LONGEST_REASON]
    return lines[-1] if lines else "the build stopped without a message"


def is_of_cuda(output):
    """Whether a build seems to have failed at its CUDA part."""
    return re.search(r"nvcc|CUDA|\.cu\b", output) is not None
