"""Whole losses of the compiled library on a CPU: one call each way, from masks and priors to the loss and back.

What a backward needs lies in one block of memory, in parts whose places the library knows. A tiny loss takes as long
as the Python around it does: hence few calls, and nothing looked up twice.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_kernels import checks
from pad_kernels.backends.base import Backend, as_kept, record_of_ops
from pad_kernels.backends.library import (
    ANCHOR_CODES,
    ELEMENTS,
    NATIVE,
    REDUCTION_CODES,
    gradient,
    packed,
    rows,
    strided,
)
from pad_kernels.inputs import (
    Gradients,
    LossRecord,
    LossRequest,
    LossSaved,
    Needed,
    SpanSelection,
    gradient_temperature,
    opmath_dtype,
)
from pad_kernels.weights import check_bounds


class _Form(NamedTuple):
    """Of a record whose tensors are the memory, and start and end of spans that were given."""

    units: int
    chosen: bool  # the units are spans that the loss chose
    grad_scale: float


@functools.lru_cache(maxsize=1024)
def _places(level: str, shape: tuple[int, ...], units: int, chosen: bool, is_double: bool) -> dict[str, int]:
    """The places of the memory's parts in bytes, and `bytes` in all. `shape`: batch, frames, tokens and width."""
    batch, frames, tokens, width = shape
    found: dict[str, int] = NATIVE.loss_memory(
        is_global=level == "global", batch=batch, frames=frames, tokens=tokens, units=units, width=width, chosen=chosen,
        is_double=is_double,
    )  # fmt: skip
    return found


class WholeLosses(Backend):
    """The losses of a backend that has the compiled library."""

    def spans_fit(self, start: Tensor, end: Tensor, frames: int) -> bool:
        """csrc/spans.h: whether all spans lie within the frames."""
        if not start.is_cpu or not start.dtype == end.dtype == torch.int32:
            return super().spans_fit(start, end, frames)
        start, end = start.contiguous(), end.contiguous()
        fit: bool = NATIVE.spans_fit(start=start.data_ptr(), end=end.data_ptr(), count=start.numel(), frames=frames)
        return fit

    def loss_forward(self, request: LossRequest) -> tuple[Tensor, LossRecord]:
        """csrc/loss.h: the loss of a level, and what its backward needs."""
        (_, speech, speech_mask, speech_prior), (_, text, text_mask, text_prior), spans, options, _ = request
        level, temperature, reduction, _ = options
        if not speech.is_cpu:
            return super().loss_forward(request)
        batch, frames, width = speech.shape
        tokens, dtype = text.shape[1], opmath_dtype(speech.dtype)
        units, selection, start, end, counts = frames, None, None, None, None
        if spans is not None:
            start, end = (packed(bound, torch.int32) for bound in spans)
            units = start.shape[1]
        elif level == "span":
            selection, counts = _selection(request.selection, batch, tokens)
            units = selection["max_anchors"] * len(selection["scales"])
        chosen = selection is not None
        places = _places(level, (batch, frames, tokens, width), units, chosen, dtype == torch.float64)
        memory = torch.empty(places["bytes"], dtype=torch.uint8, device=speech.device)
        sizes = ((batch,), (1,)) if reduction == "none" else ((), ())
        loss = torch.empty_strided(*sizes, dtype=dtype, device=speech.device)  # torch.empty takes longer for a tuple
        # Held until the call is over.
        read_speech, read_text = rows(speech), rows(text)
        held = speech_mask, speech_prior, text_mask, text_prior = [
            None if x is None else x.contiguous() for x in (speech_mask, speech_prior, text_mask, text_prior)
        ]
        grad_scale, frame_bounds, token_bounds = NATIVE.loss_forward(
            is_global=level == "global",
            batch=batch,
            frames=frames,
            tokens=tokens,
            units=units,
            width=width,
            chosen=chosen,
            element=ELEMENTS[speech.dtype],
            speech=strided(read_speech),
            text=strided(read_text),
            speech_side=_side(speech_mask, speech_prior),
            text_side=_side(text_mask, text_prior),
            masked_frame_weight=request.masked_frame_weight,
            start=0 if start is None else start.data_ptr(),
            end=0 if end is None else end.data_ptr(),
            selection=selection,
            temperature=temperature,
            reduction=REDUCTION_CODES[reduction],
            memory=memory.data_ptr(),
            loss=loss.data_ptr(),
            threads=torch.get_num_threads(),
        )
        del held, counts
        if speech_prior is not None:
            check_bounds("speech_prior", frame_bounds, (batch, frames), dtype)
        if text_prior is not None:
            check_bounds("text_prior", token_bounds, (batch, tokens), dtype)
        return loss, LossRecord(speech, text, options, (memory, start, end), _Form(units, chosen, grad_scale))

    def loss_backward(self, grad: Tensor, record: LossRecord, needed: Needed) -> Gradients:
        """csrc/loss.h: gradients of speech and text, each empty unless needed."""
        speech, text, options, tensors, form = record
        if not isinstance(form, _Form):
            return super().loss_backward(grad, record, needed)
        memory, start, end = map(as_kept, tensors)
        assert memory is not None
        batch, frames, width = speech.shape
        grad = packed(grad, opmath_dtype(speech.dtype))
        read_speech, read_text = rows(speech), rows(text)
        grad_speech, grad_text = gradient(needed.speech, speech), gradient(needed.text, text)
        NATIVE.loss_backward(
            is_global=options.level == "global",
            batch=batch,
            frames=frames,
            tokens=text.shape[1],
            units=form.units,
            width=width,
            chosen=form.chosen,
            element=ELEMENTS[speech.dtype],
            speech=strided(read_speech),
            text=strided(read_text),
            start=0 if start is None else start.data_ptr(),
            end=0 if end is None else end.data_ptr(),
            temperature=gradient_temperature(options.temperature, speech.dtype),
            memory=memory.data_ptr(),
            grad=grad.data_ptr(),
            grad_stride=1 if grad.dim() else 0,
            grad_scale=form.grad_scale,
            grad_speech=grad_speech.data_ptr() if needed.speech else 0,
            grad_text=grad_text.data_ptr() if needed.text else 0,
            threads=torch.get_num_threads(),
        )
        return grad_speech, grad_text

    def unpack(self, record: LossRecord) -> LossRecord:
        """The parts of the memory, each as a tensor of its own."""
        speech, text, options, tensors, form = record
        if not isinstance(form, _Form):
            return record
        memory, start, end = map(as_kept, tensors)
        assert memory is not None
        (batch, frames, width), tokens, opmath = speech.shape, text.shape[1], opmath_dtype(speech.dtype)
        shape = batch, frames, tokens, width
        places = _places(options.level, shape, form.units, form.chosen, opmath == torch.float64)

        def part(name: str, shape: tuple[int, ...], dtype: torch.dtype = opmath) -> Tensor:
            size = math.prod(shape) * dtype.itemsize
            return memory[places[name] : places[name] + size].view(dtype).view(shape)

        if form.chosen:
            start, end = (part(name, (batch, form.units), torch.int32) for name in ("start", "end"))
        weights = part("frame_weights", (batch, frames)), part("token_weights", (batch, tokens)), start, end
        kept: tuple[Tensor, ...]
        if options.level == "global":
            kept = part("difference", (batch, width)), part("totals", (batch, 2))
        else:
            of_tokens = {"token_mask": torch.bool, "similarity": opmath, "unit": torch.int64, "log_normalizer": opmath}
            kept = tuple(part(name, (batch, tokens), dtype) for name, dtype in of_tokens.items())
        return record_of_ops(speech, text, options, weights, LossSaved(kept, form.grad_scale))


def _side(mask: Tensor | None, prior: Tensor | None) -> tuple[int, int, int]:
    """Addresses of mask and prior, and the prior's type of element."""
    return (
        0 if mask is None else mask.data_ptr(),
        0 if prior is None else prior.data_ptr(),
        0 if prior is None else ELEMENTS[prior.dtype],
    )


def _selection(given: SpanSelection | None, batch: int, tokens: int) -> tuple[dict[str, Any], Tensor | None]:
    """How spans are chosen, as the library takes it; and the numbers of anchors that it points to."""
    assert given is not None
    wanted, scales, anchors = given
    counts, room = None, tokens if wanted is None else wanted
    if isinstance(wanted, Tensor):
        counts = checks.per_utterance("num_anchors", wanted, batch, wanted.device, torch.int64).contiguous()
        wanted = room = int(counts.max()) if batch else 0
    checks.count("max_anchors", room)
    how = {
        "anchors": ANCHOR_CODES[anchors],
        "max_anchors": room,
        "anchors_for_all": -1 if wanted is None else wanted,
        "num_anchors": 0 if counts is None else counts.data_ptr(),
        "scales": scales,
    }
    return how, counts
