"""What the kernels share: launching, products, norms, rows of a matrix and the spans of units."""

import functools

import triton
import triton.language as tl

from pad_kernels.backends.triton.memory import AMD, Buffer, on, thread
from pad_kernels.backends.triton.recorded_calls import forget_calls

EPS = tl.constexpr(1e-8)
NO_UNIT = tl.constexpr(2**31 - 1)
# Strides and sizes of units and text: no kernel is compiled anew for another number.
STRIDES_AND_SIZES = ["unit_batch", "unit_row", "text_batch", "text_row", "unit_count", "tokens", "width"]


@triton.jit
def upper_bits(value):
    """A float32 rounded to the bits of tf32, so that what is left over is exact."""
    return ((value.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def product(left, right, sum, PRECISION: tl.constexpr):
    """sum + left @ right in float32. PRECISION: how float32 operands are multiplied; "tf32" as three products of
    their upper and lower bits, never as a single one."""
    if INTERPRETED and left.dtype == tl.bfloat16:
        left, right = left.to(tl.float32), right.to(tl.float32)
    if PRECISION == "tf32" and left.dtype == tl.float32:
        left_upper, right_upper = upper_bits(left), upper_bits(right)
        sum = tl.dot(left - left_upper, right_upper, sum, input_precision="tf32")
        sum = tl.dot(left_upper, right - right_upper, sum, input_precision="tf32")
        return tl.dot(left_upper, right_upper, sum, input_precision="tf32")
    elif left.dtype == tl.float32:
        return tl.dot(left, right, sum, input_precision=PRECISION)
    else:
        return tl.dot(left, right, sum)


@triton.jit
def add_product(left, right, sum, PRECISION: tl.constexpr):
    """sum + left @ right, of a sum over many steps: in float32 each product is rounded into it by an addition, because
    the matrix units cut off what they add, always towards 0, and the errors of a thousand steps would add up."""
    if left.dtype == tl.float32:
        return sum + product(left, right, tl.zeros(sum.shape, tl.float32), PRECISION)
    else:
        return product(left, right, sum, PRECISION)


# The interpreter's product of bfloat16 is wrong: it reads the bits as integers.
INTERPRETED = tl.constexpr(not isinstance(product, triton.runtime.JITFunction))


def precision(amd: bool = AMD) -> str:
    """How float32 is multiplied: three tf32 products keep 22 bits; AMD's compiler has no such type."""
    return "ieee" if amd else "tf32"


def stages_of(stages: int, amd: bool = AMD) -> int:
    """How many steps of a loop are under way at once: AMD's compiler fails on some kernels with more than two."""
    return min(stages, 2) if amd else stages


PRECISION = precision()


@triton.jit
def narrowed(value, kind: tl.constexpr):
    """`value` in another dtype, rounded to nearest: the interpreter would cut a bfloat16 off."""
    if INTERPRETED and kind == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)
    return value.to(kind)


# Compiled kernels by what they were compiled for, so that a launch need not find that out anew.
_compiled: dict[tuple, tuple] = {}


def launch(kernel, device, programs, *operands, warps, stages, registers=0, **constants):
    """Run `programs` programs on the device's current stream. operands: buffers, numbers and None; what is in
    `constants` is compiled into the kernel."""
    with on(device):
        _launch(kernel, device, programs, operands, (warps, stages, registers), constants)


def forget_compiled():
    """For benchmarks that start something else in a kernel's place."""
    _compiled.clear()
    forget_calls()


def _launch(kernel, device, programs, operands, options, constants):
    # Of a whole number Triton may compile in that it is 1, a multiple of 16, or needs 64 bits.
    kinds = [
        x.kind if x.__class__ is Buffer
        else (x == 1) + 2 * (not x & 15) + 4 * (x >= 2**31) if x.__class__ is int
        else x.__class__
        for x in operands
    ]  # fmt: skip
    if AMD:  # it compiles in whether an operand's memory is below 2 GB
        kinds += [x.memory.untyped_storage().nbytes() < 2**31 for x in operands if x.__class__ is Buffer]
    key = id(kernel), device, options, *constants.items(), *kinds
    found = _compiled.get(key)
    if found is not None:
        compiled, ending = found
        start = compiled[(programs, 1, 1)]
        start(*[x.pointer if x.__class__ is Buffer else x for x in operands], *ending)
        if thread.recorder is not None:
            thread.recorder.launched(start, (*operands, *ending), takes_buffers=False)
        return
    warps, stages, registers = options
    limit = {"maxnreg": registers} if registers and not AMD else {}
    tensors = [x.tensor() if x.__class__ is Buffer else x for x in operands]
    compiled = kernel[(programs,)](*tensors, **constants, **limit, num_warps=warps, num_stages=stages_of(stages))
    if thread.recorder is not None:
        again = functools.partial(
            launch, kernel, device, programs, warps=warps, stages=stages, registers=registers, **constants
        )
        thread.recorder.launched(again, operands, takes_buffers=True)
    if compiled is not None and not INTERPRETED:
        _compiled[key] = compiled, [constants[name] for name in kernel.arg_names[len(operands) :]]


def rows(tensor):
    """The tensor with its rows contiguous; other strides serve as they are, but of a width in eights only such."""
    aligned = tensor.shape[-1] % 8 or not any(stride % 8 for stride in tensor.stride()[:-1])
    return tensor if tensor.stride(-1) == 1 and aligned else tensor.contiguous()


@triton.jit
def eights(number):
    """A multiple of 8, known as such to the compiler: rows can then be read 16 bytes at a time."""
    return number // 8 * 8


@triton.jit
def strides_in_eights(unit_batch, unit_row, text_batch, text_row):
    """The strides of units and text, as `eights`."""
    return eights(unit_batch), eights(unit_row), eights(text_batch), eights(text_row)


@triton.jit
def norm(squares):
    """The root of a sum of squares, at least EPS."""
    return tl.maximum(tl.sqrt(squares), EPS)


@triton.jit
def direction_weight(inverse):
    """1 / |v|^2 from 1 / max(|v|, EPS); 0 at EPS and below, where the denominator is a constant."""
    return tl.where(inverse * EPS < 1.0, inverse * inverse, 0.0)


@triton.jit
def load_rows(base, index, stride, valid, column, width):
    """Rows `index` of a matrix at the given columns; zeros, unread, where not valid."""
    pointers = base + index.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(pointers, mask=valid[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def load_span(start, end, unit, valid, frames):
    """First frame and the one past the last of each unit, clipped to the frames; (0, 0) where not valid."""
    first = tl.load(start + unit, mask=valid, other=0)
    past = tl.load(end + unit, mask=valid, other=0)
    first = tl.minimum(tl.maximum(first, 0), frames)
    past = tl.maximum(tl.minimum(past, frames), first)
    return first, past


@triton.jit
def larger(one, other):
    """The larger of two scores; NaN if either is."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def highest_score(score):
    """The largest score of each column; NaN where there is one, which tl.max would drop."""
    return tl.reduce(score, 0, larger)


@triton.jit
def lowest_index(index, score, top):
    """The lowest index of each column whose score is the highest, or NaN."""
    return tl.min(tl.where(score < top[None, :], NO_UNIT, index), 0)
