"""Forward of the alignment with spans: a program pools a tile of spans at a group of columns and multiplies it by the
tokens there, so that no unit is read again; the last program of a tile to end adds up what its columns gave.

Spans are pooled by a banded product of weights and frames. A tile reads the frames from its first to its last, so that
neighboring spans share what they read.
"""

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    add_product,
    eights,
    launch,
    load_rows,
    load_span,
    narrowed,
    norm,
    product,
)
from pad_kernels.backends.triton.configurations import ceil_div, round_up
from pad_kernels.backends.triton.memory import allocate, operand
from pad_kernels.backends.triton.reductions import is_last, keep_no_state, keep_state, merge, states


@triton.jit
def span_weights(frame_weights, frame, frames, first, past):
    """Of units and frames the weights inside the spans and whether each counts as real there; the frames' weights."""
    own = tl.load(frame_weights + frame, mask=frame < frames, other=-1.0)
    inside = (frame[None, :] >= first[:, None]) & (frame[None, :] < past[:, None])
    weight = tl.where(inside & (own > 0)[None, :], own[None, :], 0.0)
    return weight, tl.where(inside & (own >= 0)[None, :], 1.0, 0.0), own


@triton.jit
def pool(
    speech, frame_weights, speech_row, first, past, low, high, column, width,
    UNITS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Spans that lie in [low, high) at some columns: sum p s / sum p, the mean p, and 1 / sum p."""
    # Weights are divided by their sum at the end; in float16, whose range they may leave, before.
    kind: tl.constexpr = speech.dtype.element_ty
    # Groups of frames are the same in every tile: spans with the same bounds are then the same to the bit.
    from_frame = low // FRAMES * FRAMES
    divisor = tl.full([UNITS], 1.0, tl.float32)
    if kind == tl.float16:
        totals = tl.zeros([UNITS, FRAMES], tl.float32)
        for begin in range(from_frame, high, FRAMES):
            frame = begin + tl.arange(0, FRAMES)
            totals += span_weights(frame_weights, frame, high, first, past)[0]
        total = tl.sum(totals, 1)
        divisor = tl.where(total > 0, total, 1.0)
    totals = tl.zeros([UNITS, FRAMES], tl.float32)
    reals = tl.zeros([UNITS, FRAMES], tl.float32)
    found = tl.zeros([UNITS, WIDTH], tl.float32)
    for begin in range(from_frame, high, FRAMES):
        frame = begin + tl.arange(0, FRAMES)
        weight, counted, own = span_weights(frame_weights, frame, high, first, past)
        totals += weight
        reals += counted
        values = load_rows(speech, frame, speech_row, (own > 0) & (frame >= low), column, width)
        if kind == tl.float32:
            found = add_product(weight, values, found, PRECISION)
        else:
            weight = weight / divisor[:, None]
            high_part = narrowed(weight, kind)
            low_part = narrowed(weight - high_part.to(tl.float32), kind)
            found = product(low_part, values, product(high_part, values, found, PRECISION), PRECISION)
    total, real = tl.sum(totals, 1), tl.sum(reals, 1)
    inverse = 1 / tl.where(total > 0, total, 1.0)
    prior = total / tl.maximum(real, 1.0)
    found = tl.where((prior > 0)[:, None], found * (divisor * inverse)[:, None], 0.0)
    return found, prior, inverse


@triton.jit
def products_of_columns(
    pooled, first_row, upper, lower, text, text_row, unit, in_units, token, valid_token, column, step, width,
    WIDTH: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Spans times tokens at a group of columns, [UNITS, TOKENS]."""
    dot = tl.zeros([unit.shape[0], token.shape[0]], tl.float32)
    if upper.dtype == tl.float32:
        # The matrix units cut off what they add: their sums are of a few columns, and added up outside.
        for part_first in range(step * WIDTH, tl.minimum((step + 1) * WIDTH, width), PART):
            part = part_first + tl.arange(0, PART)
            unit_part = load_rows(pooled + first_row * width, unit, width, in_units, part, width)
            text_part = load_rows(text, token, text_row, valid_token, part, width)
            dot = add_product(unit_part, tl.trans(text_part), dot, PRECISION)
    else:
        # Rounding alone would sometimes change which unit is the best: what it leaves over is multiplied too.
        text_part = load_rows(text, token, text_row, valid_token, column, width)
        dot = product(lower, tl.trans(text_part), dot, PRECISION)
        dot = product(upper, tl.trans(text_part), dot, PRECISION)
    return dot


@triton.jit
def sum_over_columns(dots, first_group, past_group, lane, token, token_pitch):
    """The products of a tile over its groups of columns, in their order."""
    dot = tl.zeros([lane.shape[0], token.shape[0]], tl.float32)
    for group in range(first_group, past_group):
        place = dots + group * lane.shape[0] * token_pitch + lane[:, None] * token_pitch + token[None, :]
        dot += tl.load(place, mask=(token < token_pitch)[None, :], other=0.0, cache_modifier=".cg")
    return dot


@triton.jit(
    do_not_specialize=[
        "speech_batch", "speech_row", "text_batch", "text_row", "batch", "frames", "units", "tokens", "width",
        "token_pitch", "unit_tiles", "steps", "reduction",
    ]
)  # fmt: skip
def span_score_kernel(
    speech, text, frame_weights, token_weights, start, end,
    pooled, remainder, unit_prior, inverse_total, unit_inverse, text_inverse, kept,
    dots, unit_squares, highest, total, weighted, best,
    similarity, unit_found, log_normalizer, distance, counts, finished, loss, grad_scale,
    speech_batch, speech_row, text_batch, text_row, batch, frames, units, tokens, width, token_pitch,
    unit_tiles, steps, reduction, inverse_temperature,
    HARD: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    PART: tl.constexpr, PRECISION: tl.constexpr,
    MERGED_TOKENS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """A tile of units at a group of columns: the pooled spans, and their products with the tokens. The last group to
    end has the cosines, and from them the softmax's state of each token; the last tile of an utterance merges them."""
    speech_batch, speech_row, width = eights(speech_batch), eights(speech_row), eights(width)
    text_batch, text_row = eights(text_batch), eights(text_row)
    token_pitch = token_pitch // 16 * 16
    kind: tl.constexpr = speech.dtype.element_ty
    program = tl.program_id(0)
    step = program % steps
    unit_tile = program // steps % unit_tiles
    utterance = (program // steps // unit_tiles).to(tl.int64)
    tile = utterance * unit_tiles + unit_tile
    lane = tl.arange(0, UNITS)
    unit = unit_tile * UNITS + lane
    in_units = unit < units
    column = step * WIDTH + tl.arange(0, WIDTH)
    first, past = load_span(start + utterance * units, end + utterance * units, unit, in_units, frames)
    low = tl.min(tl.where(past > first, first, frames), 0)
    high = tl.max(past, 0)
    found, prior, inverse = pool(
        speech + utterance * speech_batch, frame_weights + utterance * frames, speech_row, first, past, low, high,
        column, width, UNITS, FRAMES, WIDTH, PRECISION,
    )  # fmt: skip
    valid_unit = prior > 0
    takes_part = tl.max(valid_unit.to(tl.int32), 0) > 0
    text += utterance * text_batch
    upper = narrowed(found, kind)
    lower = narrowed(found - upper.to(tl.float32), kind)
    if pooled is not None:
        first_unit = utterance * units + unit_tile * UNITS
        own = first_unit * width + lane[:, None] * width + column[None, :]
        in_pooled = in_units[:, None] & (column < width)[None, :]
        tl.store(pooled + own, upper, mask=in_pooled)
        if remainder is not None:
            tl.store(remainder + own, lower, mask=in_pooled)
    if step == 0:
        tl.store(unit_prior + utterance * units + unit, prior, mask=in_units)
        tl.store(inverse_total + utterance * units + unit, inverse, mask=in_units)
    if takes_part:
        group = tile * steps + step
        tl.store(unit_squares + group * UNITS + lane, tl.sum(found * found, 1))
        if kind == tl.float32:
            tl.debug_barrier()
        for token_first in range(0, tokens, TOKENS):
            token = token_first + tl.arange(0, TOKENS)
            valid_token = tl.load(token_weights + utterance * tokens + token, mask=token < tokens, other=0) > 0
            dot = products_of_columns(
                pooled, utterance * units, upper, lower, text, text_row, unit, in_units, token, valid_token, column,
                step, width, WIDTH, PART, PRECISION,
            )  # fmt: skip
            place = dots + group * UNITS * token_pitch + lane[:, None] * token_pitch + token[None, :]
            tl.store(place, dot, mask=(token < token_pitch)[None, :])
    if is_last(finished + 1 + batch + tile, steps):
        unit_scale = tl.zeros([UNITS], tl.float32)
        if takes_part:
            found_squares = tl.zeros([UNITS], tl.float32)
            for group in range(tile * steps, (tile + 1) * steps):
                found_squares += tl.load(unit_squares + group * UNITS + lane, cache_modifier=".cg")
            unit_scale = 1 / norm(found_squares)
            tl.store(unit_inverse + utterance * units + unit, unit_scale, mask=in_units)
        for token_first in range(0, tokens, TOKENS):
            token = token_first + tl.arange(0, TOKENS)
            in_tile = token < tokens
            state = tile * tokens + token
            if takes_part:
                weight = tl.load(token_weights + utterance * tokens + token, mask=in_tile, other=0)
                text_scale = tl.load(text_inverse + utterance * tokens + token, mask=weight > 0, other=0.0)
                dot = sum_over_columns(dots, tile * steps, (tile + 1) * steps, lane, token, token_pitch)
                cosine = dot * unit_scale[:, None] * text_scale[None, :]
                if kept is not None:
                    place = kept + (utterance * units + unit_tile * UNITS) * token_pitch
                    place += lane[:, None] * token_pitch + token[None, :]
                    inside = in_units[:, None] & (token < token_pitch)[None, :]
                    tl.store(place, narrowed(cosine, kept.dtype.element_ty), mask=inside)
                keep_state(
                    cosine, prior, unit, valid_unit, state, in_tile, highest, total, weighted, best,
                    inverse_temperature, HARD,
                )  # fmt: skip
            else:
                keep_no_state(state, in_tile, highest, total, weighted, best, TOKENS, HARD)
        if similarity is not None:
            if is_last(finished + 1 + utterance, unit_tiles):
                merge(
                    highest, total, weighted, best, token_weights, similarity, unit_found, log_normalizer,
                    distance, counts, finished, loss, grad_scale, utterance, batch, tokens, unit_tiles, reduction,
                    HARD, MERGED_TOKENS, TILES, BATCH,
                )  # fmt: skip


def score_spans(sides, scored, outcome, common, constants):
    """Pool all spans, score them, and fill `scored` and the outcome that is asked for. common, constants: what the
    kernel has in common with that of frames."""
    speech, text = sides.speech, sides.text
    (batch, frames, width), tokens, device = speech.shape, text.shape[1], text.device
    blocks = configurations.by_tokens(configurations.SPAN_SCORES, speech.dtype, tokens)
    unit_tiles, steps = ceil_div(sides.units, blocks.units), ceil_div(width, blocks.width)
    pitch, groups = round_up(tokens, 16), batch * unit_tiles * steps
    dots, unit_squares = allocate(
        device, (torch.float32, groups, blocks.units, pitch), (torch.float32, groups, blocks.units)
    )
    launch(
        span_score_kernel, device, groups,
        operand(speech), operand(text), sides.frame_weights, sides.token_weights, sides.start, sides.end,
        scored.units, scored.remainder, scored.unit_prior, scored.inverse_total, scored.unit_inverse,
        scored.text_inverse, scored.cosine,
        dots, unit_squares, *states(device, (batch, unit_tiles, tokens), constants["HARD"]), *outcome,
        *speech.stride()[:2], *text.stride()[:2], batch, frames, sides.units, tokens, width, pitch,
        unit_tiles, steps, *common,
        TOKENS=blocks.tokens, UNITS=blocks.units, FRAMES=blocks.group, WIDTH=blocks.width,
        PART=configurations.SPAN_PART, **constants,
        warps=blocks.warps, stages=blocks.stages, registers=blocks.registers,
    )  # fmt: skip
