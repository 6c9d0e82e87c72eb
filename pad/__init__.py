"""Distillation of a text encoder into a speech encoder (PAD, arXiv 2303.03600), on `pad_kernels`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pad.priors.recorder import record_significance

__all__ = ["__version__", "record_significance"]

try:
    __version__ = version("pad-kernels")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def __getattr__(name: str):
    # Imported when asked for: the command line must start without transformers to say what to install.
    if name == "record_significance":
        from pad.priors.recorder import record_significance

        return record_significance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
