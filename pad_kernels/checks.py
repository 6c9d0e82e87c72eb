"""Checks of arguments: what users give to the public functions, and what reaches a registered op.

Shapes, dtypes and devices are always checked. Values are checked where nobody has to wait for that: on CPU
tensors, outside torch.compile.
"""

import math
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor

from pad_kernels import torch_internals
from pad_kernels.inputs import (
    FLOATING,
    INTEGER,
    SpanInputs,
    SpanSelection,
    Temperature,
    opmath_dtype,
    widest_dtype,
)

Shape = Sequence[int]
LOWEST_TEMPERATURE = 1e-38  # its inverse is a float32
MOST_ANCHORS = 2**20
_LONGEST_DESCRIPTION = 120
_OF_MASKS = (torch.bool, *INTEGER)
# Made here: torch.compile with dynamic=True takes numbers for unknown, and cannot write those into a text.
_A_TEMPERATURE = f"0 (hard alignment) or a finite number of at least {LOWEST_TEMPERATURE}"
_A_COUNT = f"an int from 0 to {MOST_ANCHORS}"
_COUNTS = f"{_A_COUNT}, or a tensor [batch] of such"


def describe(value: object) -> str:
    """What an error message says of a value."""
    if not isinstance(value, Tensor):
        try:
            text = reprlib.repr(value)
            return text if len(text) <= _LONGEST_DESCRIPTION else f"{text[: _LONGEST_DESCRIPTION - 3]}..."
        except ValueError:  # an int of thousands of digits
            return f"a {type(value).__name__} without a printable value"
    if value.is_nested and value.layout == torch.strided:  # has no shape
        return f"a nested {str(value.dtype)[6:]} tensor on {value.device}"
    if torch_internals.is_distributed(value):
        return f"a DTensor of shape {tuple(value.shape)}, of which this process has a part"
    layout = "" if value.layout == torch.strided else f"{str(value.layout)[6:]} "
    return f"a {layout}{str(value.dtype)[6:]} tensor of shape {tuple(value.shape)} on {value.device}"


def wrong(name: str, value: object, expected: str) -> NoReturn:
    """Raises the ValueError of an argument."""
    raise ValueError(f"{name}: got {describe(value)}, expected {expected}")


def values_can_be_read(value: Tensor) -> bool:
    """Whether reading values makes nobody wait. Subclasses (fake tensors, for one) may have none."""
    return value.device.type == "cpu" and type(value) is Tensor and not torch_internals.is_traced()


def is_strided(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor that is neither sparse, nested, distributed nor otherwise without strides."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and (type(value) is Tensor or not torch_internals.is_distributed(value))
    )


def _is_number(value: object) -> TypeGuard[float]:
    # The first look is the quick one: isinstance of an abstract class takes ten times as long.
    return type(value) in (float, int) or isinstance(value, Real) and not isinstance(value, bool)


def _is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that a float holds."""
    if type(value) is float:
        return -math.inf < value < math.inf
    try:
        return _is_number(value) and -math.inf < float(value) < math.inf
    except OverflowError:
        return False


def tensor(
    name: str, value: object, dtypes: Sequence[torch.dtype], shape: Shape, device: torch.device, wanted: str
) -> None:
    """A tensor of one of `dtypes`, of `shape` and on `device`; `wanted` names it in the message."""
    if not is_strided(value) or value.dtype not in dtypes or value.shape != shape:
        wrong(name, value, f"{wanted} of shape {tuple(shape)}")
    if value.device != device:
        wrong(name, value, f"a tensor on {device}")


def _sides(speech: Tensor, text: Tensor) -> None:
    """Speech [B, M, D] and text [B, N, D] on one device."""
    for name, value in (("speech", speech), ("text", text)):
        if not is_strided(value) or value.dim() != 3 or value.dtype not in FLOATING:
            wrong(name, value, "a floating-point tensor of shape [batch, length, width]")
    (batch, _, width), (of_texts, _, of_text) = speech.shape, text.shape
    if batch != of_texts:
        wrong("text", text, f"the batch size of speech, {batch}")
    if width != of_text or width == 0:
        wrong("text", text, f"the width of speech, {width}, and at least 1")
    if text.device != speech.device:
        wrong("text", text, f"a tensor on the device of speech, {speech.device}")


def embeddings(speech: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Speech [B, M, D] and text [B, N, D], of one dtype and device; autocast promotes the narrower dtype."""
    _sides(speech, text)
    if speech.dtype != text.dtype:
        if not torch.is_autocast_enabled(speech.device.type):
            raise ValueError(
                f"speech and text: got {speech.dtype} and {text.dtype}, expected one dtype "
                "(only inside torch.autocast is the narrower one promoted)"
            )
        dtype = torch.promote_types(speech.dtype, text.dtype)
        speech, text = speech.to(dtype), text.to(dtype)
    if torch_internals.in_forward_mode() or torch_internals.in_functorch():
        _refuse_other_derivatives(speech, text)
    return speech, text


def _refuse_other_derivatives(*values: object) -> None:
    """Forward mode: torch would drop the tangents of an op without such a derivative, and call them 0.
    torch.func: it does not reach the backward of a registered op."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if any(torch_internals.has_tangent(value) for value in tensors):
        raise RuntimeError("pad_kernels: no forward-mode derivative (jvp); use reverse mode (backward, autograd.grad)")
    if any(torch_internals.is_differentiated_by_functorch(value) for value in tensors):
        raise RuntimeError("pad_kernels: no derivative by torch.func; use backward or torch.autograd.grad")


def refuse_vmap(name: str, *values: object) -> None:
    """RuntimeError if vmap maps over one of the values."""
    if any(torch_internals.is_batched(value) for value in values):
        raise RuntimeError(f"{name} does not take torch.vmap: it is batched already, pass all utterances at once")


def refuse_functorch(name: str, *values: object) -> None:
    """RuntimeError if a functorch transform is about one of the values."""
    refuse_vmap(name, *values)
    _refuse_other_derivatives(*values)


def prior(name: str, value: Tensor | None, shape: Shape, device: torch.device) -> Tensor | None:
    """A floating-point prior, a constant for the gradient; its values are checked as it is made into weights."""
    if value is None:
        return None
    tensor(name, value, FLOATING, shape, device, "a floating-point tensor")
    return value.detach() if value.requires_grad else value


def mask(name: str, value: Tensor | None, shape: Shape, device: torch.device) -> Tensor | None:
    """A mask as bool; integers 0 and 1 are taken as transformers' attention_mask."""
    if value is None:
        return None
    tensor(name, value, _OF_MASKS, shape, device, "a mask, bool or integers 0 and 1,")
    if value.dtype == torch.bool:
        return value
    if value.numel() and values_can_be_read(value):
        lowest, highest = torch.aminmax(value)
        if lowest < 0 or highest > 1:
            raise ValueError(f"{name}: got values from {lowest} to {highest}, expected 0 and 1 alone")
    return value != 0


def spans(value: object, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Spans (start, end) [B, U], int32 or int64."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        wrong("spans", value, "a pair of tensors (start, end)")
    start, end = value
    units = start.shape[1] if is_strided(start) and start.dim() == 2 else None
    for name, bound in (("spans start", start), ("spans end", end)):
        if units is None or not isinstance(bound, Tensor):
            wrong(name, bound, f"an int32 or int64 tensor of shape [{batch}, units]")
        tensor(name, bound, (torch.int32, torch.int64), (batch, units), device, "an int32 or int64 tensor")
    return start, end


def spans_fit(start: Tensor, end: Tensor, frames: int) -> bool:
    """Whether all spans lie within the frames, where the values can be read without a wait; else True."""
    return not values_can_be_read(start) or bool(((start >= 0) & (start <= end) & (end <= frames)).all())


def spans_inside(start: Tensor, end: Tensor, frames: int, fit: bool) -> tuple[Tensor, Tensor]:
    """The spans as int32, clipped where their values could not be read; ValueError if they do not `fit`."""
    if not fit:
        raise ValueError(f"spans: got a span that is not 0 <= start <= end <= {frames}, the number of frames")
    if start.dtype == torch.int64 or end.dtype == torch.int64:
        return start.clamp(0, frames).to(torch.int32), end.clamp(0, frames).to(torch.int32)
    return start, end


def temperature(value: object, *, used: bool = True) -> Temperature:
    """A finite number, 0 or large enough to divide by in float32.

    Also a tensor of such a number on the CPU. It comes back as a number, but as a tensor from a trace that is to serve
    every value: torch.compile specializes numbers that reach an op, and those that reach none. `used`: whether an op
    gets it, and so checks it once it is known.
    """
    if isinstance(value, Tensor):
        if not is_strided(value) or value.dim() or value.dtype not in FLOATING or value.device.type != "cpu":
            wrong(
                "temperature", value, _A_TEMPERATURE + ", or a floating-point tensor of one on cpu, without dimensions"
            )
        if value.requires_grad:
            wrong("temperature", value, "a constant, which gets no gradient: temperature.detach()")
        if not values_can_be_read(value):
            return value.to(torch.float64)
        value = value.item()
    if torch.compiler.is_compiling() and type(value) is float and torch_internals.is_symbolic(value):
        return torch.ones((), dtype=torch.float64) * value if used else 0.0
    # As a float32 the lowest is a little lower.
    if not _is_finite(value) or not (value == 0 or value >= (1 - 1e-6) * LOWEST_TEMPERATURE):
        wrong("temperature", value, _A_TEMPERATURE)
    return float(value)


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """One of the names in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        wrong(name, value, "one of " + ", ".join(repr(option) for option in allowed))


def scales(value: object) -> tuple[float, ...]:
    """Widths of the spans of an anchor, in units of xi: at least one, each positive."""
    if not isinstance(value, (tuple, list)) or not value:
        wrong("scales", value, "a sequence of positive numbers")
    for scale in value:
        if not _is_finite(scale) or not float(scale) > 0:
            wrong("scales", value, "a sequence of positive numbers")
    return tuple([float(scale) for scale in value])


def per_utterance(name: str, value: Any, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A number, or a tensor [B] of numbers, as a tensor [B] of `dtype`; at least 0."""
    if isinstance(value, Tensor):
        allowed = INTEGER if dtype == torch.int64 else (*FLOATING, *INTEGER)
        tensor(name, value, allowed, (batch,), device, f"a number or a {str(dtype)[6:]} tensor")
        if value.numel() and values_can_be_read(value) and not (value >= 0).all():
            raise ValueError(f"{name}: got a negative or NaN value, expected values of at least 0")
        return value.to(dtype)
    if not _is_traced_size(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or dtype.is_floating_point and _is_finite(value)) or not value >= 0:
            wrong(name, value, f"a number of at least 0 or a tensor of shape ({batch},)")
        if dtype == torch.int64 and value >= 2**63:
            wrong(name, value, "an int64")
        if dtype.is_floating_point and not _is_finite(value):
            wrong(name, value, "a finite number")
    return torch.full((batch,), value, dtype=dtype, device=device)


def _is_traced_size(value: object) -> bool:
    """Whether it is a size of a trace that is to serve every size: whatever is asked of it would narrow that."""
    if torch.compiler.is_compiling() and isinstance(value, int):
        return torch_internals.is_undecided(value <= MOST_ANCHORS, value > MOST_ANCHORS)
    return isinstance(value, torch.SymInt)


def count(name: str, value: object, wanted: str = _A_COUNT) -> None:
    """A number of anchors."""
    if _is_traced_size(value):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_ANCHORS:
        wrong(name, value, wanted)


def anchors_wanted(name: str, value: object) -> None:
    """A number of anchors, or a tensor of one for each utterance; how many there are is checked with these."""
    if not isinstance(value, Tensor):
        count(name, value, _COUNTS)
        return
    if not is_strided(value) or value.dim() != 1 or value.dtype not in INTEGER:
        wrong(name, value, _COUNTS)
    if value.numel() and values_can_be_read(value) and not torch_internals.is_batched(value):
        # As numbers of Python: the most of them is none of a narrow dtype's.
        lowest, highest = (int(bound) for bound in torch.aminmax(value))
        if lowest < 0 or highest > MOST_ANCHORS:
            found = "a negative value" if lowest < 0 else f"the value {highest}"
            raise ValueError(f"{name}: got {found}, expected {_COUNTS}")


def factor(name: str, value: object, dtype: torch.dtype) -> float:
    """A number that is finite in the opmath dtype of `dtype` too."""
    opmath = opmath_dtype(dtype)
    if not _is_finite(value) or abs(value) > torch.finfo(opmath).max:
        wrong(name, value, f"a finite {str(opmath)[6:]}")
    return float(value)


def span_inputs(
    frame_weights: Tensor,
    frame_mask: Tensor,
    num_tokens: Tensor | int,
    selection: SpanSelection,
    *,
    xi: Tensor | float | None = None,
    max_anchors: int | None = None,
) -> SpanInputs:
    """The inputs of select_spans, counts as one per utterance; `max_anchors` None: the largest count."""
    batch, device = frame_weights.shape[0], frame_weights.device
    num_tokens = torch_internals.size_of_trace(num_tokens)
    name, wanted = "num_anchors", selection.num_anchors
    if wanted is None:
        name, wanted = "num_tokens", num_tokens
    if max_anchors is None or not isinstance(wanted, Tensor):  # else what is more than that is cut
        anchors_wanted(name, wanted)
    num_tokens = per_utterance("num_tokens", num_tokens, batch, device, torch.int64)
    num_anchors = num_tokens if name == "num_tokens" else per_utterance(name, wanted, batch, device, torch.int64)
    if max_anchors is None:
        if isinstance(wanted, Tensor):
            wanted = int(wanted.max()) if wanted.numel() else 0
        max_anchors = wanted
    max_anchors = torch_internals.size_of_trace(max_anchors)
    count("max_anchors", max_anchors)
    if xi is not None:
        xi = per_utterance("xi", xi, batch, device, widest_dtype(device))
    return SpanInputs(
        frame_weights, frame_mask, num_tokens, num_anchors, max_anchors, list(selection.scales), xi, selection.anchors
    )


# What reaches a registered op, from whoever calls it. A shape, dtype or device that a kernel does not expect would
# have it read and write beyond its memory.


def op_sides(speech: Tensor, text: Tensor) -> None:
    """The embeddings of an op, which promotes nothing."""
    _sides(speech, text)
    if text.dtype != speech.dtype:
        wrong("text", text, f"the dtype of speech, {speech.dtype}")


def floating(name: str, value: Tensor, shape: Shape, device: torch.device) -> None:
    """A floating-point tensor of this shape, on this device."""
    tensor(name, value, FLOATING, shape, device, "a floating-point tensor")


def exactly(name: str, value: Tensor, dtype: torch.dtype, shape: Shape, device: torch.device) -> None:
    """A tensor of this dtype and shape, on this device."""
    tensor(name, value, (dtype,), shape, device, f"a {str(dtype)[6:]} tensor")
