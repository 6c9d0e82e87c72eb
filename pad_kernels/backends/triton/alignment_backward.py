"""Backward of the soft alignment: cosines are computed again, tile by tile, from the saved normaliser.

The gradient of speech needs them as [unit, token], that of text as [token, unit]. Each kernel computes them in
the layout that its next product takes: the transpose of a product's result as the operand of another product
gives wrong gradients on Hopper in Triton before 3.7.0. Spans are pooled once, and what is found for
them is handed to their frames by spread.py.
"""

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    launch,
    load_rows,
    norm,
    product,
    rows,
    text_product,
    unit_product,
)  # fmt: skip
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.hard import hard_gradients
from pad_kernels.backends.triton.spread import pool_spans, spread_to_frames


@triton.jit
def load_tokens(unit, grad_similarity, similarity, log_normalizer, row, in_tile):
    """Whether each token takes part, its gradient, similarity and log-normaliser."""
    present = tl.load(unit + row, mask=in_tile, other=-1) >= 0
    grad = tl.load(grad_similarity + row, mask=present, other=0.0)
    mean = tl.load(similarity + row, mask=present, other=0.0)
    return present, grad, mean, tl.load(log_normalizer + row, mask=present, other=0.0)


@triton.jit
def grad_cosine(cosine, log_prior, normalizer, mean, grad, inverse_temperature):
    """grad A (1 + (phi - similarity) / tau)."""
    exponent = cosine * inverse_temperature + log_prior - normalizer
    posterior = tl.exp(tl.where(exponent > 0, 0.0, exponent))  # rounding, at a low temperature
    return grad * posterior * (1 + (cosine - mean) * inverse_temperature)


@triton.jit
def projected(sum, part, along, length):
    """Through v / max(|v|, eps): from that of the direction; below eps the denominator is a constant."""
    inverse = 1 / norm(length)
    along = tl.where(length > 1e-16, along * inverse, 0.0)
    return (sum - part * along[:, None]) * inverse[:, None]


@triton.jit(do_not_specialize=["tokens", "units", "unit_tiles"])
def unit_kernel(
    speech, text, prior, grad_similarity, similarity, unit, log_normalizer, sum, out,
    speech_batch, speech_row, text_batch, text_token,
    tokens, units, width, unit_tiles, inverse_temperature,
    TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of units; `sum` is float32 memory for more tokens than one tile, else None."""
    program = tl.program_id(0)
    row = program % unit_tiles * UNITS + tl.arange(0, UNITS)
    utterance = (program // unit_tiles).to(tl.int64)
    speech += utterance * speech_batch
    text += utterance * text_batch
    weight = tl.load(prior + utterance * units + row, mask=row < units, other=0.0)
    out_row = utterance * units + row
    if tl.max(weight, 0) > 0:
        log_prior = tl.where(weight > 0, tl.log(tl.where(weight > 0, weight, 1.0)), -float("inf"))
        for first in range(0, tokens, TOKENS):
            token = first + tl.arange(0, TOKENS)
            token_row = utterance * tokens + token
            present, grad, mean, normalizer = load_tokens(
                unit, grad_similarity, similarity, log_normalizer, token_row, token < tokens
            )
            cosine = tl.zeros([UNITS, TOKENS], tl.float32)
            unit_squares = tl.zeros([UNITS], tl.float32)
            token_squares = tl.zeros([TOKENS], tl.float32)
            for step in range(0, width, WIDTH):
                column = step + tl.arange(0, WIDTH)
                unit_part = load_rows(speech, row, speech_row, weight > 0, column, width)
                text_part = load_rows(text, token, text_token, present, column, width)
                cosine = unit_product(unit_part, text_part, cosine)
                unit_part, text_part = unit_part.to(tl.float32), text_part.to(tl.float32)
                unit_squares += tl.sum(unit_part * unit_part, 1)
                token_squares += tl.sum(text_part * text_part, 1)
            inverse = 1 / norm(token_squares)
            cosine = cosine * (1 / norm(unit_squares))[:, None] * inverse[None, :]
            grads = grad_cosine(
                cosine, log_prior[:, None], normalizer[None, :], mean[None, :], grad[None, :],
                inverse_temperature,
            )  # fmt: skip
            grads = grads * inverse[None, :]
            scale = tl.full([UNITS], 1.0, tl.float32)
            if text.dtype.element_ty == tl.float16:
                # Small gradients would be lost in float16's range.
                scale = tl.max(tl.abs(grads), 1)
                scale = tl.where(scale > 0, scale, 1.0)
                grads = grads / scale[:, None]
            grads = grads.to(text.dtype.element_ty)
            # Of the rounded weights: the two parts of the gradient nearly cancel for nearly parallel vectors.
            along = tl.sum(grads.to(tl.float32) * cosine / inverse[None, :], 1) * scale
            for step in range(0, width, WIDTH):
                column = step + tl.arange(0, WIDTH)
                unit_part = load_rows(speech, row, speech_row, weight > 0, column, width)
                text_part = load_rows(text, token, text_token, present, column, width)
                found = product(grads, text_part, tl.zeros([UNITS, WIDTH], tl.float32)) * scale[:, None]
                found = projected(found, unit_part.to(tl.float32), along, unit_squares)
                place = out_row[:, None] * width + column[None, :]
                inside = (row < units)[:, None] & (column < width)[None, :]
                if sum is not None:
                    if first > 0:
                        found += tl.load(sum + place, mask=inside, other=0.0)
                    if first + TOKENS < tokens:
                        tl.store(sum + place, found, mask=inside)
                    else:
                        tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)
                else:
                    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)
            if sum is not None:
                # The next tile reads what other threads have written.
                tl.debug_barrier()
    else:
        for step in range(0, width, WIDTH):
            column = step + tl.arange(0, WIDTH)
            place = out_row[:, None] * width + column[None, :]
            inside = (row < units)[:, None] & (column < width)[None, :]
            tl.store(out + place, tl.zeros([UNITS, WIDTH], out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "tokens", "units", "token_tiles", "tiles_per_part"])
def text_kernel(
    speech, text, prior, grad_similarity, similarity, unit, log_normalizer, out,
    speech_batch, speech_row, text_batch, text_token,
    batch, tokens, units, width, token_tiles, groups, tiles_per_part, inverse_temperature,
    TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Gradient of GROUP columns of a tile of tokens, from one part of the units: out [part, batch, N, D]."""
    program = tl.program_id(0)
    group = program % groups
    token = program // groups % token_tiles * TOKENS + tl.arange(0, TOKENS)
    utterance = (program // groups // token_tiles % batch).to(tl.int64)
    part = (program // groups // token_tiles // batch).to(tl.int64)
    speech += utterance * speech_batch
    text += utterance * text_batch
    column_out = group * GROUP + tl.arange(0, GROUP)
    present, grad, mean, normalizer = load_tokens(
        unit, grad_similarity, similarity, log_normalizer, utterance * tokens + token, token < tokens
    )
    found = tl.zeros([TOKENS, GROUP], tl.float32)
    along = tl.zeros([TOKENS], tl.float32)
    scale = tl.zeros([TOKENS], tl.float32)
    token_squares = tl.zeros([TOKENS], tl.float32)
    first = part.to(tl.int32) * tiles_per_part * UNITS
    past = tl.minimum(first + tiles_per_part * UNITS, units)
    if tl.max(present.to(tl.int32), 0) == 0:
        past = first
    for tile in range(first, past, UNITS):
        row = tile + tl.arange(0, UNITS)
        weight = tl.load(prior + utterance * units + row, mask=row < units, other=0.0)
        if tl.max(weight, 0) > 0:
            log_prior = tl.where(weight > 0, tl.log(tl.where(weight > 0, weight, 1.0)), -float("inf"))
            cosine = tl.zeros([TOKENS, UNITS], tl.float32)
            unit_squares = tl.zeros([UNITS], tl.float32)
            token_squares = tl.zeros([TOKENS], tl.float32)
            for step in range(0, width, WIDTH):
                column = step + tl.arange(0, WIDTH)
                unit_part = load_rows(speech, row, speech_row, weight > 0, column, width)
                text_part = load_rows(text, token, text_token, present, column, width)
                cosine = text_product(text_part, unit_part, cosine)
                unit_part, text_part = unit_part.to(tl.float32), text_part.to(tl.float32)
                unit_squares += tl.sum(unit_part * unit_part, 1)
                token_squares += tl.sum(text_part * text_part, 1)
            inverse = 1 / norm(unit_squares)
            cosine = cosine * inverse[None, :] * (1 / norm(token_squares))[:, None]
            grads = grad_cosine(
                cosine, log_prior[None, :], normalizer[:, None], mean[:, None], grad[:, None],
                inverse_temperature,
            )  # fmt: skip
            grads = grads * inverse[None, :]
            if text.dtype.element_ty == tl.float16:
                # Small gradients would be lost in float16's range.
                larger = tl.maximum(scale, tl.max(tl.abs(grads), 1))
                divisor = tl.where(larger > 0, larger, 1.0)
                found = found * (scale / divisor)[:, None]
                along = along * (scale / divisor)
                grads = grads / divisor[:, None]
                scale = larger
            grads = grads.to(text.dtype.element_ty)
            # Of the rounded weights: the two parts of the gradient nearly cancel for nearly parallel vectors.
            along += tl.sum(grads.to(tl.float32) * cosine / inverse[None, :], 1)
            unit_part = load_rows(speech, row, speech_row, weight > 0, column_out, width)
            if unit_part.dtype == text.dtype.element_ty:
                found = product(grads, unit_part, found)
            else:
                high = unit_part.to(text.dtype.element_ty)
                low = (unit_part - high.to(tl.float32)).to(text.dtype.element_ty)
                found = product(grads, low, product(grads, high, found))
    if text.dtype.element_ty == tl.float16:
        found = found * scale[:, None]
        along = along * scale
    text_part = load_rows(text, token, text_token, present, column_out, width).to(tl.float32)
    found = projected(found, text_part, along, token_squares)
    place = ((part * batch + utterance) * tokens + token)[:, None] * width + column_out[None, :]
    inside = (token < tokens)[:, None] & (column_out < width)[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["parts"])
def sum_kernel(source, out, parts, numel, COUNT: tl.constexpr):
    """The sum of the parts, in order."""
    place = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    found = tl.zeros([COUNT], tl.float32)
    for _ in range(0, parts):
        found += tl.load(source + place, mask=place < numel, other=0.0)
        source += numel
    tl.store(out + place, found.to(out.dtype.element_ty), mask=place < numel)


def unit_gradient(arguments, strides, sizes, inverse_temperature, dtype):
    """Gradient [B, U, D] of the units in `dtype`."""
    batch, tokens, units, width = sizes
    speech = arguments[0]
    blocks = configurations.by_tokens(configurations.UNIT_GRADIENT, arguments[1].dtype, tokens)
    unit_tiles = ceil_div(units, blocks.units)
    out = torch.empty(batch, units, width, dtype=dtype, device=speech.device)
    sum = None
    if tokens > blocks.tokens:
        sum = out if dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    launch(
        unit_kernel, batch * unit_tiles,
        *arguments, sum, out, *strides, tokens, units, width, unit_tiles, inverse_temperature,
        TOKENS=blocks.tokens, UNITS=blocks.units, WIDTH=blocks.width, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    return out


def text_gradient(arguments, strides, sizes, inverse_temperature):
    """Gradient [B, N, D] of the text, in its dtype."""
    batch, tokens, units, width = sizes
    text = arguments[1]
    blocks = configurations.by_tokens(configurations.TEXT_GRADIENT, text.dtype, tokens)
    token_tiles, groups = ceil_div(tokens, blocks.tokens), ceil_div(width, blocks.group)
    tiles = ceil_div(units, blocks.units)
    tiles_per_part = ceil_div(tiles, configurations.text_parts(batch, tokens, width, units, blocks))
    parts = ceil_div(tiles, tiles_per_part)
    grad_text = torch.empty(batch, tokens, width, dtype=text.dtype, device=text.device)
    out = grad_text
    if parts > 1:
        out = torch.empty(parts, batch, tokens, width, dtype=torch.float32, device=text.device)
    launch(
        text_kernel, parts * batch * token_tiles * groups,
        *arguments, out, *strides, batch, tokens, units, width, token_tiles, groups, tiles_per_part,
        inverse_temperature,
        TOKENS=blocks.tokens, UNITS=blocks.units, WIDTH=blocks.width, GROUP=blocks.group,
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    if parts > 1:
        blocks = configurations.SUM
        launch(
            sum_kernel, ceil_div(grad_text.numel(), blocks.width), out, grad_text, parts, grad_text.numel(),
            COUNT=blocks.width, warps=blocks.warps, stages=blocks.stages,
        )  # fmt: skip
    return grad_text


def alignment_backward(
    grad_similarity, speech, text, frame_prior, token_mask, start, end, temperature,
    similarity, unit, log_normalizer, need_speech, need_text,
):  # fmt: skip
    """Gradients of speech and text, each empty unless needed."""
    batch, frames, width = speech.shape
    tokens, units = text.shape[1], frames if start is None else start.shape[1]
    grad_speech, grad_text = speech.new_empty(0), text.new_empty(0)
    if batch * frames * tokens * units == 0:
        if need_speech:
            grad_speech = torch.empty(speech.shape, dtype=speech.dtype, device=speech.device).zero_()
        if need_text:
            grad_text = torch.empty(text.shape, dtype=text.dtype, device=text.device).zero_()
        return grad_speech, grad_text
    dtype, speech, text = speech.dtype, rows(speech), rows(text)
    frame_prior = frame_prior.to(torch.float32).contiguous()
    saved = [x.to(torch.float32).contiguous() for x in (grad_similarity, similarity, log_normalizer)]
    saved.insert(2, unit.contiguous())
    if start is not None:
        start, end = (bound.to(torch.int32).contiguous() for bound in (start, end))
    if temperature == 0:
        return hard_gradients(speech, text, frame_prior, start, end, saved[:3], need_speech, need_text)

    prior, weight = frame_prior, None
    source = speech
    if start is not None:
        source, prior, weight = pool_spans(speech, frame_prior, start, end)
    arguments = (source, text, prior, *saved)
    strides = (*source.stride()[:2], *text.stride()[:2])
    sizes = (batch, tokens, units, width)
    if need_speech:
        of_units = dtype if start is None else torch.float32
        grad_speech = unit_gradient(arguments, strides, sizes, 1 / temperature, of_units)
        if start is not None:
            grad_speech = spread_to_frames(grad_speech, frame_prior, start, end, weight, dtype)
    if need_text:
        grad_text = text_gradient(arguments, strides, sizes, 1 / temperature)
    return grad_speech, grad_text
