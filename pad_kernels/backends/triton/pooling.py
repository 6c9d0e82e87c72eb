"""The global level: L1 distance of the weighted means of an utterance's frames and tokens."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import launch, narrowed, rows
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.memory import Buffer, contiguous, empty, operand
from pad_kernels.backends.triton.reductions import is_last, reduce_batch, unfinished
from pad_kernels.inputs import REDUCTIONS, Gradients, Needed, Pooled, PoolingInputs


@triton.jit
def weighted_mean(
    values, weights, row_stride, count, column, width, ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr
):
    """sum w v / sum w at some columns, and sum w; rows of weight 0 are not read."""
    found = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in tl.range(0, count, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        weight = tl.load(weights + row, mask=row < count, other=0.0)
        there = (weight != 0)[:, None] & (column < width)[None, :]
        part = tl.load(values + row.to(tl.int64)[:, None] * row_stride + column[None, :], mask=there, other=0.0)
        found += weight[:, None] * part.to(tl.float32)
        total += weight
    sum = tl.sum(total, 0)
    return tl.sum(found, 0) / tl.where(sum == 0, 1.0, sum), sum


@triton.jit(do_not_specialize=["batch", "frames", "tokens", "steps", "reduction"])
def distance_kernel(
    speech, text, frame_weights, token_weights, difference, totals,
    distance, counts, finished, loss, grad_scale,
    speech_batch, speech_row, text_batch, text_row, batch, frames, tokens, width, steps, reduction,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, COLUMNS: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """An utterance at a group of columns: the difference of both means, 0 where a side has no weight. The last of an
    utterance to end sums its distance; for a loss the last of all gives that of the batch."""
    program = tl.program_id(0)
    step = program % steps
    utterance = (program // steps).to(tl.int64)
    column = step * WIDTH + tl.arange(0, WIDTH)
    of_speech, speech_total = weighted_mean(
        speech + utterance * speech_batch, frame_weights + utterance * frames, speech_row, frames, column, width,
        ROWS, WIDTH, STAGES,
    )  # fmt: skip
    of_text, text_total = weighted_mean(
        text + utterance * text_batch, token_weights + utterance * tokens, text_row, tokens, column, width,
        ROWS, WIDTH, STAGES,
    )  # fmt: skip
    counted = (speech_total != 0) & (text_total != 0)
    found = tl.where(counted, of_speech - of_text, 0.0)
    tl.store(difference + utterance * width + column, found, mask=column < width)
    if step == 0:
        tl.store(totals + utterance * 2, speech_total)
        tl.store(totals + utterance * 2 + 1, text_total)
    if is_last(finished + 1 + utterance, steps):
        sums = tl.zeros([COLUMNS], tl.float32)
        for first in range(0, width, COLUMNS):
            place = first + tl.arange(0, COLUMNS)
            part = tl.load(difference + utterance * width + place, mask=place < width, other=0.0, cache_modifier=".cg")
            sums += tl.abs(part)
        sum = tl.sum(sums, 0)
        if loss is None:
            tl.store(distance + utterance, sum)
        else:
            sum = tl.where(counted, sum, 0.0)
            reduce_batch(sum, counted, utterance, distance, counts, finished, loss, grad_scale, batch, reduction, BATCH)


@triton.jit
def store_gradient(
    out, weights, total, difference, grad, row, count, column, width, row_offset
):  # fmt: skip
    """grad * weight / total * sign(difference) of some rows, 0 where the weight is; a NaN difference stays."""
    weight = tl.load(weights + row, mask=row < count, other=0.0)
    share = weight / tl.where(total == 0, 1.0, total)
    signed = tl.where(difference > 0, grad, tl.where(difference < 0, -grad, difference))
    found = tl.where((weight != 0)[:, None], share[:, None] * signed[None, :], 0.0)
    place = (row_offset + row)[:, None] * width + column[None, :]
    inside = (row < count)[:, None] & (column < width)[None, :]
    tl.store(out + place, narrowed(found, out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["upstream_stride", "frames", "tokens", "frame_tiles", "tiles", "steps"])
def gradient_kernel(
    upstream, upstream_stride, grad_scale, difference, totals, frame_weights, token_weights, grad_speech, grad_text,
    frames, tokens, width, frame_tiles, tiles, steps, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of frames, or after them of tokens, at a group of columns."""
    program = tl.program_id(0)
    column = program % steps * WIDTH + tl.arange(0, WIDTH)
    tile = program // steps % tiles
    utterance = (program // steps // tiles).to(tl.int64)
    grad = tl.load(upstream + utterance * upstream_stride).to(tl.float32)
    if grad_scale is not None:
        grad *= tl.load(grad_scale)
    found = tl.load(difference + utterance * width + column, mask=column < width, other=0.0)
    if tile < frame_tiles:
        row = tile * ROWS + tl.arange(0, ROWS)
        total = tl.load(totals + utterance * 2)
        store_gradient(
            grad_speech, frame_weights + utterance * frames, total, found, grad, row, frames, column, width,
            utterance * frames,
        )  # fmt: skip
    else:
        row = (tile - frame_tiles) * ROWS + tl.arange(0, ROWS)
        total = tl.load(totals + utterance * 2 + 1)
        store_gradient(
            grad_text, token_weights + utterance * tokens, total, -found, grad, row, tokens, column, width,
            utterance * tokens,
        )  # fmt: skip


class Means(NamedTuple):
    """What is pooled: the embeddings, their rows contiguous, and the weights of their rows."""

    speech: Tensor
    text: Tensor
    frame_weights: Buffer
    token_weights: Buffer


class Distance(NamedTuple):
    """What the kernel writes, in its order: None for what is not asked for."""

    difference: Buffer  # [B, D] of the weighted means
    totals: Buffer  # [B, 2]: the sums of the weights
    distance: Buffer  # [B]
    counts: Buffer | None = None
    finished: Buffer | None = None  # as in `Outcome`
    loss: Buffer | None = None
    grad_scale: Buffer | None = None


def distance(means: Means, found: Distance, reduction="none"):
    """Fill what is to be found of an utterance's two means, and with a loss what is to be found of the batch."""
    speech, text = means.speech, means.text
    batch, frames, width = speech.shape
    blocks = configurations.by_itemsize(configurations.POOL_ROWS, speech.dtype)
    whole = configurations.POOL_DISTANCE
    steps = ceil_div(width, blocks.width)
    launch(
        distance_kernel, speech.device, batch * steps, operand(speech), operand(text), means.frame_weights,
        means.token_weights, *found, *speech.stride()[:2], *text.stride()[:2], batch, frames, text.shape[1], width,
        steps, REDUCTIONS.index(reduction), ROWS=blocks.units, WIDTH=blocks.width, STAGES=blocks.stages,
        COLUMNS=whole.width, BATCH=whole.group,
        warps=blocks.warps, stages=blocks.stages, registers=blocks.registers,
    )  # fmt: skip


def gradients(upstream, grad_scale, means: Means, difference, totals, needed: Needed) -> Gradients:
    """Gradients of speech and text, each empty unless needed; `upstream`: a scalar or [B]."""
    (batch, frames, width), tokens, device = means.speech.shape, means.text.shape[1], means.speech.device
    dtype = means.speech.dtype
    grad_speech = empty((batch, frames, width) if needed.speech else (0,), dtype, device)
    grad_text = empty((batch, tokens, width) if needed.text else (0,), dtype, device)
    blocks = configurations.POOL_GRADIENT
    frame_tiles = ceil_div(frames, blocks.units) if needed.speech else 0
    tiles = frame_tiles + (ceil_div(tokens, blocks.units) if needed.text else 0)
    steps = ceil_div(width, blocks.width)
    if batch * tiles:
        launch(
            gradient_kernel, device, batch * tiles * steps, operand(upstream),
            upstream.stride(0) if upstream.dim() else 0, grad_scale, difference, totals, means.frame_weights,
            means.token_weights, operand(grad_speech), operand(grad_text), frames, tokens, width,
            frame_tiles, tiles, steps, ROWS=blocks.units, WIDTH=blocks.width, warps=blocks.warps, stages=blocks.stages,
        )  # fmt: skip
    return grad_speech, grad_text


def means_of(inputs: PoolingInputs) -> Means:
    """The inputs as the kernels read them."""
    weights = inputs.frame_weights, inputs.token_weights
    return Means(rows(inputs.speech), rows(inputs.text), *map(contiguous, weights))


def pooled_distance_forward(inputs: PoolingInputs) -> Pooled:
    """Distances [B] of the weighted means, their differences [B, D], and the sums of the weights [B, 2]."""
    (batch, _, width), device = inputs.speech.shape, inputs.speech.device
    shapes = (batch,), (batch, width), (batch, 2)
    pooled = Pooled(*(torch.empty(shape, dtype=torch.float32, device=device) for shape in shapes))
    if batch:
        distances, difference, totals = map(operand, pooled)
        finished = operand(unfinished(device, batch))
        distance(means_of(inputs), Distance(difference, totals, distances, finished=finished))
    return pooled


def pooled_distance_backward(grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
    """Gradients p_i sign(difference) grad of speech and -q_j sign(difference) grad of text."""
    kept = contiguous(saved.difference), contiguous(saved.totals)
    return gradients(grad, None, means_of(inputs), *kept, needed)
