"""Why the compiled library is missing, and whether that is a mistake of the installation."""

import functools
import hashlib
import importlib.metadata
import warnings
from pathlib import Path

_NO_MISTAKE = ("no C++ compiler was found", "as asked")


def _shadowed(package: Path) -> Path | None:
    """Where this project is installed with its compiled library, if `package` is another copy of it; else None."""
    # A build leaves metadata in the source folder too, without the library.
    for distribution in importlib.metadata.distributions(name="pad-kernels"):
        for file in distribution.files or ():
            if file.parts[0] == package.name and file.name.startswith("_native"):
                found = Path(str(file.locate())).resolve()
                if found.is_file() and found.parent != package.resolve():
                    return found.parent
    return None


def digest_of_sources(root: Path) -> str:
    """What the compiled library is made of, in the checkout `root`, in a few characters; empty where it is none."""
    sources = sorted(path for path in (root / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    if not sources or not (root / "CMakeLists.txt").is_file():
        return ""
    found = hashlib.sha256()
    for path in (root / "CMakeLists.txt", *sorted((root / "cmake").glob("*.cmake")), *sources):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def stale_library(package: Path, compiled_from: str) -> str | None:
    """Why the library in the folder `package` does not fit the sources around it, or None: a checkout that was changed
    after its editable install."""
    now = digest_of_sources(package.parent) if compiled_from else ""
    if now in ("", compiled_from):
        return None
    return (
        f"pad_kernels: the compiled library in {package} was built of other sources than those beside it; install "
        "again: pip install -e ."
    )


def cuda_note(package: Path) -> str | None:
    """What the build said of the CUDA kernels; None where it left no word."""
    note = package / "_build.txt"
    text = note.read_text(encoding="utf-8") if note.exists() else ""
    return text.partition("; CUDA: ")[2].strip() or None


def missing_library(package: Path, failure: ImportError) -> tuple[str, bool]:
    """(why the library of the folder `package` is missing, whether the machine could have it)."""
    installed = _shadowed(package)
    if installed is not None:
        return (
            f"pad_kernels: the sources in {package} hide the installed package in {installed}, which has the compiled "
            "library; start Python in another folder, or install with: pip install -e .",
            True,
        )
    note = package / "_build.txt"
    reason = note.read_text(encoding="utf-8").strip() if note.exists() else f"pad_kernels: {failure}"
    if "not built" in reason:
        return reason, not any(words in reason for words in _NO_MISTAKE)
    return f"pad_kernels: the compiled library could not be loaded: {failure}", note.exists()


@functools.cache
def warn_once(reason: str) -> None:
    """Warn, once in a process, that plain PyTorch runs where the compiled library could."""
    reason = reason.removeprefix("pad_kernels: ")
    warnings.warn(f"pad_kernels: plain PyTorch is used, which is much slower: {reason}", RuntimeWarning, stacklevel=2)
