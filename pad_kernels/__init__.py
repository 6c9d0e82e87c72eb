"""Fused kernels that align text with speech inside a training loss (PAD, arXiv 2303.03600)."""

import importlib
from types import ModuleType

from pad_kernels.backends import available_backends
from pad_kernels.loss import PADLoss, pad_loss
from pad_kernels.ops.alignment import Alignment, align, alignment_matrix
from pad_kernels.ops.significance import significance, significance_from_attentions
from pad_kernels.ops.spans import Spans, select_spans

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "PADLoss",
    "Spans",
    "align",
    "alignment_matrix",
    "available_backends",
    "info",
    "pad_loss",
    "select_spans",
    "significance",
    "significance_from_attentions",
]


def __getattr__(name: str) -> ModuleType:
    # `python -m pad_kernels.info` warns if the package has imported the module before it runs.
    if name == "info":
        return importlib.import_module("pad_kernels.info")
    raise AttributeError(f"module 'pad_kernels' has no attribute {name!r}")
