"""What a run was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of the packages a run depends on and those named, and this project's git revision."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("pad-kernels", "torch", "transformers", "accelerate", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if find_spec("torch") is not None:
        import torch

        found["torch"] = torch.__version__  # with the build, as +cu132, which its metadata may lack
    found["git"] = git_revision(Path(__file__).resolve().parent)
    return found


def git_revision(package: Path) -> str:
    """The revision that this package was built from, as setup.py has noted it, or else that of its checkout."""
    noted = package / "_revision.txt"
    if noted.is_file():
        return noted.read_text(encoding="utf-8").strip()
    folder = package.parent
    if not (folder / ".git").exists():  # git would find a repository around it, of something else
        return "not a git checkout"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--match=", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "not a git checkout"
