"""Distillation of a text encoder into a speech encoder (PAD, arXiv 2303.03600), on `pad_kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pad.priors.recorder import record_significance

    __version__: str

__all__ = ["__version__", "record_significance"]


def __getattr__(name: str):
    # Imported when asked for: the command line must start without transformers to say what to install, and soon.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("pad-kernels")
        except PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name == "record_significance":
        from pad.priors.recorder import record_significance

        return record_significance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
