"""Spans pooled into units once, by the whole chip: a banded product of weights and frames.

A tile of units reads the frames from its first to its last, so that neighbouring spans share what they read.
"""

import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    PRECISION,
    add_product,
    eights,
    launch,
    load_rows,
    load_span,
    narrowed,
    product,
)
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.memory import operand


@triton.jit
def span_weights(frame_prior, frame, frames, first, past):
    """Of units and frames the priors inside the spans and whether each counts as real there; the frames' priors."""
    prior = tl.load(frame_prior + frame, mask=frame < frames, other=-1.0)
    inside = (frame[None, :] >= first[:, None]) & (frame[None, :] < past[:, None])
    weight = tl.where(inside & (prior > 0)[None, :], prior[None, :], 0.0)
    return weight, tl.where(inside & (prior >= 0)[None, :], 1.0, 0.0), prior


@triton.jit(do_not_specialize=["speech_batch", "speech_row", "frames", "units", "width", "unit_tiles", "steps"])
def pool_kernel(
    speech, frame_prior, start, end, pooled, remainder, unit_prior, unit_weight,
    speech_batch, speech_row, frames, units, width, unit_tiles, steps,
    UNITS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of units at a group of columns: sum p s / sum p, the mean prior, and 1 / sum p."""
    speech_batch, speech_row, width = eights(speech_batch), eights(speech_row), eights(width)
    program = tl.program_id(0)
    step = program % steps
    unit_tile = program // steps % unit_tiles
    utterance = (program // steps // unit_tiles).to(tl.int64)
    speech += utterance * speech_batch
    frame_prior += utterance * frames
    unit = unit_tile * UNITS + tl.arange(0, UNITS)
    in_tile = unit < units
    column = step * WIDTH + tl.arange(0, WIDTH)
    first, past = load_span(start + utterance * units, end + utterance * units, unit, in_tile, frames)
    low = tl.min(tl.where(past > first, first, frames), 0)
    high = tl.max(past, 0)

    # Weights are divided by their sum at the end; in float16, whose range a prior may leave, before.
    kind: tl.constexpr = speech.dtype.element_ty
    divisor = tl.full([UNITS], 1.0, tl.float32)
    if kind == tl.float16:
        totals = tl.zeros([UNITS, FRAMES], tl.float32)
        for begin in range(low, high, FRAMES):
            frame = begin + tl.arange(0, FRAMES)
            totals += span_weights(frame_prior, frame, high, first, past)[0]
        total = tl.sum(totals, 1)
        divisor = tl.where(total > 0, total, 1.0)
    totals = tl.zeros([UNITS, FRAMES], tl.float32)
    reals = tl.zeros([UNITS, FRAMES], tl.float32)
    found = tl.zeros([UNITS, WIDTH], tl.float32)
    for begin in range(low, high, FRAMES):
        frame = begin + tl.arange(0, FRAMES)
        weight, counted, prior = span_weights(frame_prior, frame, high, first, past)
        totals += weight
        reals += counted
        values = load_rows(speech, frame, speech_row, prior > 0, column, width)
        if kind == tl.float32:
            found = add_product(weight, values, found, PRECISION)
        else:
            weight = weight / divisor[:, None]
            high_part = narrowed(weight, kind)
            low_part = narrowed(weight - high_part.to(tl.float32), kind)
            found = product(low_part, values, product(high_part, values, found, PRECISION), PRECISION)
    total, real = tl.sum(totals, 1), tl.sum(reals, 1)
    inverse = 1 / tl.where(total > 0, total, 1.0)
    found *= (divisor * inverse)[:, None]

    row = utterance * units + unit
    pooled += utterance * units * width
    place = unit[:, None] * width + column[None, :]
    inside = in_tile[:, None] & (column < width)[None, :]
    rounded = narrowed(found, pooled.dtype.element_ty)
    tl.store(pooled + place, rounded, mask=inside)
    if remainder is not None:
        below = narrowed(found - rounded.to(tl.float32), remainder.dtype.element_ty)
        tl.store(remainder + utterance * units * width + place, below, mask=inside)
    if step == 0:
        tl.store(unit_prior + row, total / tl.maximum(real, 1.0), mask=in_tile)
        tl.store(unit_weight + row, inverse, mask=in_tile)


def pool_units(sides, scored, remainder):
    """Fill the pooled units [B, U, D], their priors and weights [B, U], and what rounding the units left over."""
    speech = sides.speech
    batch, frames, width = speech.shape
    units = sides.units
    blocks = configurations.by_itemsize(configurations.POOL, speech.dtype)
    unit_tiles, steps = ceil_div(units, blocks.units), ceil_div(width, blocks.width)
    launch(
        pool_kernel, speech.device, batch * unit_tiles * steps,
        operand(speech), sides.frame_prior, sides.start, sides.end, scored.units, remainder, scored.unit_prior,
        scored.unit_weight, *speech.stride()[:2], frames, units, width, unit_tiles, steps,
        UNITS=blocks.units, FRAMES=blocks.group, WIDTH=blocks.width, PRECISION=PRECISION,
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
