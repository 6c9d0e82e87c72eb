"""The losses in few launches: one prepares weights and spans, one to three align or pool, and the last reduces.

Forward: prepare, score and reduce; global: prepare, difference and reduce.
Backward: soft weights, text and units, or the hard gradients, (spread to the frames); global: one.

What a backward needs lies in two blocks of memory: that of the loss, and that of the units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pad_kernels.backends.base import as_kept, record_of_ops
from pad_kernels.backends.triton import configurations, pooling, recorded_calls
from pad_kernels.backends.triton.common import rows
from pad_kernels.backends.triton.gradients import gradients
from pad_kernels.backends.triton.memory import Buffer, Layout, allocate, contiguous, empty, layout, operand
from pad_kernels.backends.triton.pooling import Distance, Means
from pad_kernels.backends.triton.preparation import Preparation, choice_of, prepare, scratch_of
from pad_kernels.backends.triton.reductions import Outcome, counters
from pad_kernels.backends.triton.scores import Sides, is_empty, kept_layout, score, scored_in
from pad_kernels.backends.triton.token_gradients import TokenGradient
from pad_kernels.inputs import Gradients, LossRecord, LossRequest, LossSaved, Needed, Saved


class Form(NamedTuple):
    """Of a record whose tensors are the memory of the loss, that of the units, and the spans where they were given."""

    of_loss: Layout
    of_units: Layout | None  # None: at the global level
    spans: int  # of an utterance; 0 where the units are frames
    chosen: bool  # the spans were chosen by the loss


class Kept(NamedTuple):
    """What the memory of a loss holds; None for what its level does not have."""

    frame_weights: Buffer
    token_weights: Buffer
    finished: Buffer
    start: Buffer | None
    end: Buffer | None
    counts: Buffer
    grad_scale: Buffer
    distance: Buffer | None  # None: it is the loss
    similarity: Buffer | None
    unit: Buffer | None
    log_normalizer: Buffer | None
    difference: Buffer | None
    totals: Buffer | None


def _room(shape, spans, tiles, is_global, reduced) -> Layout:
    """Room for what is kept, in the order of `Kept`. shape: batch, frames, tokens, width; spans: those to be chosen;
    tiles: of the spans of an utterance."""
    batch, frames, tokens, width = shape
    of_batch, of_tokens, bounds = (torch.float32, batch), (torch.float32, batch, tokens), (torch.int32, batch, spans)
    local = not is_global
    return layout(
        (torch.float32, batch, frames),
        of_tokens,
        (torch.int32, counters(batch, tiles)),
        bounds if spans else None,
        bounds if spans else None,
        (torch.int32, batch),
        (torch.float32, 1),
        of_batch if reduced else None,
        of_tokens if local else None,
        (torch.int64, batch, tokens) if local else None,
        of_tokens if local else None,
        (torch.float32, batch, width) if is_global else None,
        (torch.float32, batch, 2) if is_global else None,
    )


def loss_forward(request: LossRequest) -> tuple[Tensor, LossRecord] | None:
    """The loss of a level, and what its backward needs; None where there is no frame, no token or no span."""
    speech, text, spans = request.speech, request.text, request.spans or (None, None)
    inputs = speech.values, text.values, speech.mask, text.mask, speech.prior, text.prior, *spans
    level, temperature, reduction, _ = request.options
    kind = "forward", level, temperature, reduction, request.selection, request.differentiable
    found = recorded_calls.call(lambda: _forward(request), kind, inputs)
    if found is None:
        return None
    (loss, memory, units), form = found
    return loss, LossRecord(speech.values, text.values, request.options, (memory, units, *spans), form)


def _forward(request: LossRequest) -> tuple[tuple[Tensor, Tensor, Tensor | None], Form] | None:
    """The loss, its memory and that of the units; and how they are laid out."""
    options, text = request.options, rows(request.text.values)
    speech, device = rows(request.speech.values), request.text.values.device
    (batch, frames, width), tokens = speech.shape, text.shape[1]
    choice, is_global = choice_of(request), options.level == "global"
    given = (None, None) if request.spans is None else tuple(bound.contiguous() for bound in request.spans)
    chosen = choice.anchors is not None
    if is_empty(speech, text, given[0]) or chosen and choice.room == 0:
        return None
    spans = choice.room * len(choice.scales) if chosen else 0 if given[0] is None else given[0].shape[1]
    shape = batch, frames, tokens, width
    tiles = configurations.span_tiles(spans, text.dtype, tokens)
    of_loss = _room(shape, spans if chosen else 0, tiles, is_global, options.reduction != "none")
    memory = of_loss.allocate(device)
    kept = Kept(*of_loss.buffers(memory))
    start, end = (kept.start, kept.end) if chosen else map(operand, given)
    loss = empty(() if options.reduction != "none" else (batch,), torch.float32, device)
    (scratch,) = allocate(device, scratch_of(choice, batch, frames))
    speech_side, text_side = (
        (contiguous(side.mask, torch.uint8), contiguous(side.prior)) for side in (request.speech, request.text)
    )
    wanted = Preparation(
        *speech_side, *text_side, None, None, None, kept.frame_weights, kept.token_weights, kept.start, kept.end,
        scratch, kept.finished,
    )  # fmt: skip
    to_prepare = wanted, choice, device, batch, frames, tokens, tiles, request.masked_frame_weight
    of_batch = operand(loss) if kept.distance is None else kept.distance, kept.counts, kept.finished, operand(loss)
    of_units = units = None
    if is_global:
        prepare(*to_prepare)
        found = Distance(kept.difference, kept.totals, *of_batch, kept.grad_scale)
        means = Means(speech, text, kept.frame_weights, kept.token_weights)
        pooling.distance(means, found, options.reduction)
    else:
        temperature = options.temperature
        sides = Sides(speech, text, kept.frame_weights, kept.token_weights, start, end, spans)
        of_units = kept_layout(sides, temperature, request.differentiable)
        units = of_units.allocate(device)
        scored = scored_in(units, of_units, sides)
        prepare(*to_prepare, text, scored.text_inverse)
        outcome = Outcome(kept.similarity, kept.unit, kept.log_normalizer, *of_batch, kept.grad_scale)
        score(sides, scored, temperature, outcome, options.reduction)
    return (loss, memory, units), Form(of_loss, of_units, spans, chosen)


def loss_backward(grad: Tensor, record: LossRecord, needed: Needed) -> Gradients:
    """Gradients of speech and text, each empty unless needed; `grad` is that of the reduced loss."""
    inputs = grad, record.speech, record.text, *record.tensors
    kind = "backward", record.options.level, record.options.temperature, record.form, needed
    (grad_speech, grad_text), _ = recorded_calls.call(lambda: (_backward(grad, record, needed), None), kind, inputs)
    return grad_speech, grad_text


def _backward(grad: Tensor, record: LossRecord, needed: Needed) -> Gradients:
    options, form, (memory, units, *given) = record.options, record.form, map(as_kept, record.tensors)
    speech, text = rows(record.speech), rows(record.text)
    kept = Kept(*form.of_loss.buffers(memory))
    if form.of_units is None:
        means = Means(speech, text, kept.frame_weights, kept.token_weights)
        return pooling.gradients(grad, kept.grad_scale, means, kept.difference, kept.totals, needed)
    start, end = (kept.start, kept.end) if form.chosen else map(operand, given)
    sides = Sides(speech, text, kept.frame_weights, kept.token_weights, start, end, form.spans)
    stride = grad.stride(0) if grad.dim() else 0
    of_tokens = TokenGradient(None, operand(grad), stride, kept.grad_scale, kept.token_weights)
    saved = Saved(kept.similarity, kept.unit, kept.log_normalizer)
    scored = scored_in(units, form.of_units, sides)
    return gradients(of_tokens, sides, scored, saved, options.temperature, needed)


def unpack(record: LossRecord) -> LossRecord:
    """The record of a loss that is made of the ops."""
    memory, _, start, end = map(as_kept, record.tensors)
    kept = Kept(*(x if x is None else x.tensor() for x in record.form.of_loss.buffers(memory)))
    if record.form.chosen:
        start, end = kept.start, kept.end
    weights = kept.frame_weights, kept.token_weights, start, end
    tensors = (kept.difference, kept.totals)
    if record.options.level != "global":
        tensors = None, kept.similarity, kept.unit, kept.log_normalizer
    saved = LossSaved(tensors, kept.grad_scale.view(()))
    return record_of_ops(record.speech, record.text, record.options, weights, saved)
