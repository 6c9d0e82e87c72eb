"""Checks of arguments, once for all ops.

Shapes, dtypes and devices are always checked. Values are checked where nobody has to wait for that: on CPU
tensors, outside torch.compile.
"""

import math
import reprlib
from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pad_kernels.inputs import FLOATING, INTEGER

_PLAIN = (Tensor, torch.nn.Parameter)
LOWEST_TEMPERATURE = 1e-38  # its inverse is a float32
MOST_ANCHORS = 2**20


def describe(value) -> str:
    """What an error message says of a value."""
    if not isinstance(value, Tensor):
        return reprlib.repr(value)
    layout = "" if value.layout == torch.strided else f"{str(value.layout)[6:]} "
    return f"a {layout}{str(value.dtype)[6:]} tensor of shape {tuple(value.shape)} on {value.device}"


def _wrong(name, value, expected):
    raise ValueError(f"{name}: got {describe(value)}, expected {expected}")


def are_plain(*values: Tensor | None) -> bool:
    """Whether the memory of tensors may be used past the dispatcher: nobody traces or transforms it."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
    ):
        return False
    for value in values:
        if value is not None and (type(value) not in _PLAIN or value.is_meta):
            return False
    return True


def values_can_be_read(value: Tensor) -> bool:
    """Whether reading values makes nobody wait. Subclasses (fake tensors, for one) may have none."""
    return value.device.type == "cpu" and type(value) is Tensor and not torch.compiler.is_compiling()


def _is_strided(value) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def tensor(name, value, dtypes, shape, device, wanted):
    """A tensor of one of `dtypes`, of `shape` and on `device`; `wanted` names it in the message."""
    if not _is_strided(value) or value.dtype not in dtypes or tuple(value.shape) != tuple(shape):
        _wrong(name, value, f"{wanted} of shape {tuple(shape)}")
    if value.device != device:
        _wrong(name, value, f"a tensor on {device}")


def embeddings(speech: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Speech [B, M, D] and text [B, N, D], of one dtype and device; autocast promotes the narrower dtype."""
    for name, value in (("speech", speech), ("text", text)):
        if not _is_strided(value) or value.dim() != 3 or value.dtype not in FLOATING:
            _wrong(name, value, "a floating-point tensor of shape [batch, length, width]")
    if speech.shape[0] != text.shape[0]:
        _wrong("text", text, f"the batch size of speech, {speech.shape[0]}")
    if speech.shape[2] != text.shape[2] or speech.shape[2] == 0:
        _wrong("text", text, f"the width of speech, {speech.shape[2]}, and at least 1")
    if text.device != speech.device:
        _wrong("text", text, f"a tensor on the device of speech, {speech.device}")
    if speech.dtype != text.dtype:
        if not torch.is_autocast_enabled(speech.device.type):
            raise ValueError(
                f"speech and text: got {speech.dtype} and {text.dtype}, expected one dtype "
                "(only inside torch.autocast is the narrower one promoted)"
            )
        dtype = torch.promote_types(speech.dtype, text.dtype)
        speech, text = speech.to(dtype), text.to(dtype)
    if not torch.compiler.is_compiling():
        _refuse_other_derivatives(speech, text)
    return speech, text


def _refuse_other_derivatives(*values: Tensor) -> None:
    """Forward mode: torch would drop the tangents of an op without such a derivative, and call them 0.
    torch.func: it does not reach the backward of a registered op."""
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(value).tangent is not None for value in values):
        raise RuntimeError("pad_kernels: no forward-mode derivative (jvp); use reverse mode (backward, autograd.grad)")
    if any(torch._C._functorch.is_gradtrackingtensor(value) for value in values):
        raise RuntimeError("pad_kernels: no derivative by torch.func; use backward or torch.autograd.grad")


def mask(name: str, value: Tensor | None, shape, device) -> Tensor | None:
    """A mask as bool; integers 0 and 1 are taken as transformers' attention_mask."""
    if value is None:
        return None
    tensor(name, value, (torch.bool, *INTEGER), shape, device, "a mask, bool or integers 0 and 1,")
    if value.dtype == torch.bool:
        return value
    if value.numel() and values_can_be_read(value):
        lowest, highest = torch.aminmax(value)
        if lowest < 0 or highest > 1:
            raise ValueError(f"{name}: got values from {lowest} to {highest}, expected 0 and 1 alone")
    return value != 0


def spans(value, batch: int, frames: int, device, compiled) -> tuple[Tensor | None, Tensor | None]:
    """Spans (start, end) [B, U] as int32, or (None, None); `compiled` as for `position_weights`."""
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        _wrong("spans", value, "a pair of tensors (start, end)")
    start, end = value
    units = start.shape[1] if isinstance(start, Tensor) and start.dim() == 2 else "units"
    for name, bound in (("spans start", start), ("spans end", end)):
        if units == "units" or not isinstance(bound, Tensor):
            _wrong(name, bound, f"an int32 or int64 tensor of shape [{batch}, units]")
        tensor(name, bound, (torch.int32, torch.int64), (batch, units), device, "an int32 or int64 tensor")
    if compiled and start.dtype == end.dtype == torch.int32 and are_plain(start, end):
        fit = compiled.spans_fit(start, end, frames)
    else:
        fit = not values_can_be_read(start) or ((start >= 0) & (start <= end) & (end <= frames)).all()
    if not fit:
        raise ValueError(f"spans: got a span that is not 0 <= start <= end <= {frames}, the number of frames")
    if start.dtype == torch.int64 or end.dtype == torch.int64:
        start, end = (bound.clamp(0, frames).to(torch.int32) for bound in (start, end))
    return start, end



def temperature(value) -> float:
    """A finite number, 0 or large enough to divide by in float32."""
    if not _is_number(value) or not (value == 0 or LOWEST_TEMPERATURE <= value < math.inf):
        _wrong("temperature", value, f"0 (hard alignment) or a finite number of at least {LOWEST_TEMPERATURE}")
    return float(value)


def choice(name: str, value, allowed: tuple[str, ...]) -> None:
    """One of the names in `allowed`."""
    if value not in allowed:
        _wrong(name, value, "one of " + ", ".join(repr(option) for option in allowed))


def scales(value) -> list[float]:
    """Widths of the spans of an anchor, in units of xi: at least one, each positive."""
    if not isinstance(value, (tuple, list)) or not value:
        _wrong("scales", value, "a sequence of positive numbers")
    for scale in value:
        if not _is_number(scale) or not 0 < scale < math.inf:
            _wrong("scales", value, "a sequence of positive numbers")
    return [float(scale) for scale in value]


def per_utterance(name: str, value, batch: int, device, dtype) -> Tensor:
    """A number, or a tensor [B] of numbers, as a tensor [B] of `dtype`; at least 0."""
    if isinstance(value, Tensor):
        allowed = INTEGER if dtype == torch.int64 else (*FLOATING, *INTEGER)
        tensor(name, value, allowed, (batch,), device, f"a number or a {str(dtype)[6:]} tensor")
        if value.numel() and values_can_be_read(value) and not (value >= 0).all():
            raise ValueError(f"{name}: got a negative or NaN value, expected values of at least 0")
        return value.to(dtype)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or dtype.is_floating_point and _is_number(value)) or not 0 <= value < math.inf:
        _wrong(name, value, f"a number of at least 0 or a tensor of shape ({batch},)")
    if dtype == torch.int64 and value >= 2**63:
        _wrong(name, value, "an int64")
    return torch.full((batch,), value, dtype=dtype, device=device)


def anchors_wanted(name: str, value) -> None:
    """A number of anchors, or a tensor of such numbers (their values are checked with their utterances)."""
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    if not isinstance(value, Tensor) and not (whole and 0 <= value <= MOST_ANCHORS):
        _wrong(name, value, f"an int from 0 to {MOST_ANCHORS}, or a tensor of such")


def number(name: str, value) -> float:
    """A finite number."""
    if not _is_number(value) or not math.isfinite(value):
        _wrong(name, value, "a finite number")
    return float(value)


def refuse_vmap(*names: str) -> None:
    """Ops that are batched already: torch.vmap over them is an error, not a slow loop."""
    for name in names:

        def refuse(info, in_dims, *arguments, name=name):
            raise RuntimeError(f"{name} does not take torch.vmap: it is batched already, pass all utterances at once")

        torch.library.register_vmap(name, refuse)
