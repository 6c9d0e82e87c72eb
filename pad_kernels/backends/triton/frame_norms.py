"""The norm of each frame: a program owns one, and goes through its columns."""

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton.common import launch, rows

COLUMNS = 256


@triton.jit
def norm_kernel(values, out, batch_stride, row_stride, frames, width, COLUMNS: tl.constexpr):
    """The root of the sum of squares of a frame, in float32."""
    program = tl.program_id(0)
    values += (program // frames).to(tl.int64) * batch_stride + (program % frames).to(tl.int64) * row_stride
    squares = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        value = tl.load(values + column, mask=column < width, other=0.0).to(tl.float32)
        squares += value * value
    tl.store(out + program, tl.sqrt(tl.sum(squares, 0)))


def frame_norms(values):
    """Norms [B, M] of the frames [B, M, D]."""
    batch, frames, width = values.shape
    out = torch.empty(batch, frames, dtype=torch.float32, device=values.device)
    if out.numel():
        values = rows(values)
        strides = values.stride()[:2]
        launch(norm_kernel, batch * frames, values, out, *strides, frames, width, COLUMNS=COLUMNS, warps=4, stages=1)
    return out
