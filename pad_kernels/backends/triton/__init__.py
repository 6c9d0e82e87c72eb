"""The Triton backend: GPUs, or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1 before the import)."""

import re

import torch
import triton

from pad_kernels.backends.triton.alignment_backward import alignment_backward
from pad_kernels.backends.triton.alignment_forward import alignment_forward
from pad_kernels.backends.triton.common import INTERPRETED
from pad_kernels.backends.triton.significance import significance

__all__ = ["alignment_backward", "alignment_forward", "serves", "significance"]

OLDEST = (3, 3)  # the compiler of 3.2 aborts the process on some of the kernels
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VERSION = tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])


def _reason_against_width(op, width):
    if op == "significance":
        if not 16 <= width <= 256:
            return f"the triton backend takes heads of 16 to 256 columns, not {width}"
    elif width % 8 or not 8 <= width <= 2048:
        return f"the triton backend takes widths that are multiples of 8 up to 2048, not {width}"
    return None


def serves(op, device, dtype, width=None):
    """None where the op runs here on this device and dtype (and D, or the head's width), else the reason why not."""
    if op not in __all__ or op == "serves":
        return f"the triton backend has no {op}"
    if VERSION < OLDEST:
        return f"the triton backend needs triton {OLDEST[0]}.{OLDEST[1]} or newer, not {triton.__version__}"
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"the triton backend runs on cuda, not on {device.type}"
    if dtype not in DTYPES:
        return f"the triton backend takes float32, bfloat16 and float16, not {dtype}"
    return None if width is None else _reason_against_width(op, width)
