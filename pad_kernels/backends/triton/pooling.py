"""The global level: L1 distance of the weighted means of an utterance's frames and tokens."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import launch, narrowed, rows
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.scores import reduce_batch, reduction_buffers
from pad_kernels.inputs import Gradients, Needed, Pooled, PoolingInputs


@triton.jit
def weighted_mean(values, weights, row_stride, count, column, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """sum w v / sum w at some columns, and sum w; rows of weight 0 are not read."""
    found = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in tl.range(0, count, ROWS, num_stages=3):
        row = first + tl.arange(0, ROWS)
        weight = tl.load(weights + row, mask=row < count, other=0.0)
        there = (weight != 0)[:, None] & (column < width)[None, :]
        part = tl.load(values + row.to(tl.int64)[:, None] * row_stride + column[None, :], mask=there, other=0.0)
        found += weight[:, None] * part.to(tl.float32)
        total += weight
    sum = tl.sum(total, 0)
    return tl.sum(found, 0) / tl.where(sum == 0, 1.0, sum), sum


@triton.jit(do_not_specialize=["frames", "tokens"])
def difference_kernel(
    speech, text, frame_weights, token_weights, difference, totals,
    speech_batch, speech_row, text_batch, text_row, frames, tokens, width, steps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """An utterance at a group of columns: the difference of both means, 0 where a side has no weight."""
    program = tl.program_id(0)
    step = program % steps
    utterance = (program // steps).to(tl.int64)
    column = step * WIDTH + tl.arange(0, WIDTH)
    of_speech, speech_total = weighted_mean(
        speech + utterance * speech_batch, frame_weights + utterance * frames, speech_row, frames, column, width,
        ROWS, WIDTH,
    )  # fmt: skip
    of_text, text_total = weighted_mean(
        text + utterance * text_batch, token_weights + utterance * tokens, text_row, tokens, column, width, ROWS, WIDTH
    )
    empty = (speech_total == 0) | (text_total == 0)
    found = tl.where(empty, 0.0, of_speech - of_text)
    tl.store(difference + utterance * width + column, found, mask=column < width)
    if step == 0:
        tl.store(totals + utterance * 2, speech_total)
        tl.store(totals + utterance * 2 + 1, text_total)


@triton.jit(do_not_specialize=["batch"])
def distance_kernel(
    difference, totals, distance, counts, finished, loss, grad_scale, batch, width,
    REDUCTION: tl.constexpr, WIDTH: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """An utterance's distance; with REDUCTION the loss of the batch too, by the last utterance to end."""
    utterance = tl.program_id(0).to(tl.int64)
    found = tl.zeros([WIDTH], tl.float32)
    for first in range(0, width, WIDTH):
        column = first + tl.arange(0, WIDTH)
        found += tl.abs(tl.load(difference + utterance * width + column, mask=column < width, other=0.0))
    sum = tl.sum(found, 0)
    if REDUCTION is None:
        tl.store(distance + utterance, sum)
    else:
        counted = (tl.load(totals + utterance * 2) > 0) & (tl.load(totals + utterance * 2 + 1) > 0)
        sum = tl.where(counted, sum, 0.0)
        reduce_batch(sum, counted, utterance, distance, counts, finished, loss, grad_scale, batch, REDUCTION, BATCH)


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


@triton.jit(do_not_specialize=["frames", "tokens", "frame_tiles", "tiles"])
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


def difference(inputs: PoolingInputs):
    """Differences [B, D] of the weighted means, and the sums of the weights [B, 2]."""
    speech, text = rows(inputs.speech), rows(inputs.text)
    batch, frames, width = speech.shape
    found = torch.empty(batch, width, dtype=torch.float32, device=speech.device)
    totals = torch.empty(batch, 2, dtype=torch.float32, device=speech.device)
    blocks = configurations.by_itemsize(configurations.POOL_ROWS, speech.dtype)
    steps = ceil_div(width, blocks.width)
    if batch:
        launch(
            difference_kernel, batch * steps, speech, text, *weights_of(inputs), found, totals,
            *speech.stride()[:2], *text.stride()[:2], frames, text.shape[1], width, steps,
            ROWS=blocks.units, WIDTH=blocks.width, warps=blocks.warps, stages=blocks.stages,
        )  # fmt: skip
    return found, totals


def weights_of(inputs: PoolingInputs):
    """The weights of frames and tokens as the kernels read them."""
    return inputs.frame_weights.contiguous(), inputs.token_weights.contiguous()


def distance(found, totals, reduction=None, finished=None):
    """Distances [B]; with a reduction the loss and its grad_scale, as `merge` has them."""
    batch, width = found.shape
    counts = loss = grad_scale = None
    if reduction is None:
        distances = torch.empty(batch, dtype=torch.float32, device=found.device)
    else:
        distances, counts, loss, grad_scale = reduction_buffers(batch, reduction, found.device)
    blocks = configurations.POOL_DISTANCE
    if batch:
        launch(
            distance_kernel, batch, found, totals, distances, counts, finished, loss, grad_scale, batch, width,
            REDUCTION=reduction, WIDTH=blocks.width, BATCH=blocks.group, warps=blocks.warps, stages=blocks.stages,
        )  # fmt: skip
    return distances if reduction is None else (loss, grad_scale)


def gradients(upstream, grad_scale, inputs: PoolingInputs, found, totals, needed: Needed) -> Gradients:
    """Gradients of speech and text, each empty unless needed; `upstream`: a scalar or [B]."""
    batch, width = found.shape
    frames, tokens = inputs.speech.shape[1], inputs.text.shape[1]
    dtype, device = inputs.speech.dtype, found.device
    grad_speech = torch.empty((batch, frames, width) if needed.speech else 0, dtype=dtype, device=device)
    grad_text = torch.empty((batch, tokens, width) if needed.text else 0, dtype=dtype, device=device)
    blocks = configurations.POOL_GRADIENT
    frame_tiles = ceil_div(frames, blocks.units) if needed.speech else 0
    tiles = frame_tiles + (ceil_div(tokens, blocks.units) if needed.text else 0)
    steps = ceil_div(width, blocks.width)
    if batch * tiles:
        launch(
            gradient_kernel, batch * tiles * steps, upstream, upstream.stride(0) if upstream.dim() else 0, grad_scale,
            found, totals, *weights_of(inputs), grad_speech, grad_text, frames, tokens, width,
            frame_tiles, tiles, steps, ROWS=blocks.units, WIDTH=blocks.width, warps=blocks.warps, stages=blocks.stages,
        )  # fmt: skip
    return grad_speech, grad_text


def pooled_distance_forward(inputs: PoolingInputs) -> Pooled:
    """Distances [B] of the weighted means, their differences [B, D], and the sums of the weights [B, 2]."""
    found, totals = difference(inputs)
    return Pooled(distance(found, totals), found, totals)


def pooled_distance_backward(grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
    """Gradients p_i sign(difference) grad of speech and -q_j sign(difference) grad of text."""
    return gradients(grad, None, inputs, saved.difference.contiguous(), saved.totals.contiguous(), needed)
