"""What the kernels share: launching, products, norms, and the units as they are pooled from the frames."""

import contextlib

import torch
import triton
import triton.language as tl

EPS = tl.constexpr(1e-8)
NO_UNIT = tl.constexpr(2**31 - 1)


@triton.jit
def product(left, right, sum):
    """sum + left @ right in float32, never in tf32."""
    if INTERPRETED and left.dtype == tl.bfloat16:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sum, input_precision="ieee")


@triton.jit
def unit_product(units, text, sum):
    """sum + units @ text^T; units pooled in float32 keep that precision as the sum of two halves."""
    if units.dtype == text.dtype:
        return product(units, tl.trans(text), sum)
    else:
        high = units.to(text.dtype)
        low = (units - high.to(tl.float32)).to(text.dtype)
        return product(low, tl.trans(text), product(high, tl.trans(text), sum))


@triton.jit
def text_product(text, units, sum):
    """sum + text @ units^T, with the units as above."""
    if units.dtype == text.dtype:
        return product(text, tl.trans(units), sum)
    else:
        high = units.to(text.dtype)
        low = (units - high.to(tl.float32)).to(text.dtype)
        return product(text, tl.trans(low), product(text, tl.trans(high), sum))


# The interpreter's product of bfloat16 is wrong: it reads the bits as integers.
INTERPRETED = tl.constexpr(not isinstance(product, triton.runtime.JITFunction))


def launch(kernel, programs, *arguments, warps, stages, **constants):
    """Run `programs` programs on the current stream of the device of the first argument."""
    device = arguments[0].device
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[(programs,)](*arguments, **constants, num_warps=warps, num_stages=stages)


def rows(tensor):
    """The tensor with its last dimension contiguous: any other strides serve as they are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@triton.jit
def norm(squares):
    """The root of a sum of squares, at least EPS."""
    return tl.maximum(tl.sqrt(squares), EPS)


@triton.jit
def load_rows(base, index, stride, present, column, width):
    """Rows `index` of a matrix at the given columns; zeros, unread, where not present."""
    pointers = base + index.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(pointers, mask=present[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def load_span(start, end, unit, present, frames):
    """First frame and length of each unit, clipped to the frames."""
    first = tl.load(start + unit, mask=present, other=0)
    past = tl.load(end + unit, mask=present, other=0)
    first = tl.minimum(tl.maximum(first, 0), frames)
    return first, tl.maximum(tl.minimum(past, frames) - first, 0)


@triton.jit
def span_weight(prior, first, length):
    """Sum and mean of the priors in each span; frames below 0 are masked and count in neither."""
    weight = tl.zeros_like(first).to(tl.float32)
    real = tl.zeros_like(weight)
    for i in range(0, tl.max(length, 0)):
        share = tl.load(prior + first + i, mask=i < length, other=-1.0)
        weight += tl.maximum(share, 0.0)
        real += tl.where(share >= 0, 1.0, 0.0)
    return weight, weight / tl.maximum(real, 1.0)


@triton.jit
def inverse_weight(weight):
    """1 / sum p; 1 where there is no weight."""
    return 1 / tl.where(weight > 0, weight, 1.0)


@triton.jit
def pool(speech, stride, prior, first, length, inverse, column, width, STAGES: tl.constexpr):
    """sum p s / sum p over each span, at the given columns; a unit without weight is 0."""
    pooled = tl.zeros([first.shape[0], column.shape[0]], tl.float32)
    for i in tl.range(0, tl.max(length, 0), num_stages=STAGES):
        share = tl.load(prior + first + i, mask=i < length, other=0.0)
        # Read whatever its prior is, so that a load waits for no other; it is dropped below.
        frame = load_rows(speech, first + i, stride, i < length, column, width).to(tl.float32)
        pooled += tl.where((share > 0)[:, None], (share * inverse)[:, None] * frame, 0.0)
    return pooled
