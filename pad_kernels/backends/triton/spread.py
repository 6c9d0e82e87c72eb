"""Spans and their frames, for the backward: units pooled once, and gradients of units handed to the frames."""

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import inverse_weight, launch, load_rows, load_span, pool, product, span_weight
from pad_kernels.backends.triton.configurations import ceil_div


@triton.jit(do_not_specialize=["frames", "units", "unit_tiles"])
def pool_kernel(
    speech, frame_prior, start, end, pooled, prior, weight, speech_batch, speech_frame,
    frames, units, width, unit_tiles, steps,
    UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of units: WIDTH columns of their vectors, their priors and sums of priors."""
    program = tl.program_id(0)
    column = program % steps * WIDTH + tl.arange(0, WIDTH)
    unit = program // steps % unit_tiles * UNITS + tl.arange(0, UNITS)
    utterance = (program // steps // unit_tiles).to(tl.int64)
    speech += utterance * speech_batch
    frame_prior += utterance * frames
    row = utterance * units + unit
    first, length = load_span(start, end, row, unit < units, frames)
    sum, mean = span_weight(frame_prior, first, length)
    if program % steps == 0:
        tl.store(weight + row, sum, mask=unit < units)
        tl.store(prior + row, mean, mask=unit < units)
    length = tl.where(sum > 0, length, 0)
    unit_part = pool(speech, speech_frame, frame_prior, first, length, inverse_weight(sum), column, width, STAGES=3)
    place = row[:, None] * width + column[None, :]
    tl.store(pooled + place, unit_part, mask=(unit < units)[:, None] & (column < width)[None, :])


@triton.jit(do_not_specialize=["frames", "units", "frame_tiles"])
def spread_kernel(
    source, frame_prior, start, end, weight, out, frames, units, width, frame_tiles, steps,
    FRAMES: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of frames: each frame's share p / sum p of every unit that covers it, in order."""
    program = tl.program_id(0)
    column = program % steps * WIDTH + tl.arange(0, WIDTH)
    frame = program // steps % frame_tiles * FRAMES + tl.arange(0, FRAMES)
    utterance = (program // steps // frame_tiles).to(tl.int64)
    source += utterance * units * width
    prior = tl.load(frame_prior + utterance * frames + frame, mask=frame < frames, other=0.0)
    found = tl.zeros([FRAMES, WIDTH], tl.float32)
    past = units
    if tl.max(prior, 0) <= 0:
        past = 0
    for tile in range(0, past, UNITS):
        unit = tile + tl.arange(0, UNITS)
        row = utterance * units + unit
        first, length = load_span(start, end, row, unit < units, frames)
        sum = tl.load(weight + row, mask=unit < units, other=0.0)
        place = frame[:, None] - first[None, :]
        covers = (place >= 0) & (place < length[None, :]) & (sum > 0)[None, :] & (prior > 0)[:, None]
        if tl.max(tl.max(covers.to(tl.int32), 1), 0) > 0:
            share = tl.where(covers, prior[:, None] / tl.where(sum > 0, sum, 1.0)[None, :], 0.0)
            grad = load_rows(source, unit, width, sum > 0, column, width)
            found = product(share, grad, found)
    place = (utterance * frames + frame)[:, None] * width + column[None, :]
    inside = (frame < frames)[:, None] & (column < width)[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)


def pool_spans(speech, frame_prior, start, end):
    """Units [B, U, D] float32, their priors and sums of priors [B, U]."""
    batch, frames, width = speech.shape
    units = start.shape[1]
    blocks = configurations.POOL
    unit_tiles, steps = ceil_div(units, blocks.units), ceil_div(width, blocks.width)
    pooled = torch.empty(batch, units, width, dtype=torch.float32, device=speech.device)
    prior = torch.empty(batch, units, dtype=torch.float32, device=speech.device)
    weight = torch.empty_like(prior)
    launch(
        pool_kernel, batch * unit_tiles * steps,
        speech, frame_prior, start, end, pooled, prior, weight, *speech.stride()[:2],
        frames, units, width, unit_tiles, steps,
        UNITS=blocks.units, WIDTH=blocks.width, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    return pooled, prior, weight


def spread_to_frames(source, frame_prior, start, end, weight, dtype):
    """Gradient [B, M, D] of the frames in `dtype`, from that of the units [B, U, D] float32."""
    batch, units, width = source.shape
    frames = frame_prior.shape[1]
    blocks = configurations.GATHER
    frame_tiles, steps = ceil_div(frames, blocks.group), ceil_div(width, blocks.width)
    out = torch.empty(batch, frames, width, dtype=dtype, device=source.device)
    launch(
        spread_kernel, batch * frame_tiles * steps,
        source, frame_prior, start, end, weight, out, frames, units, width, frame_tiles, steps,
        FRAMES=blocks.group, UNITS=blocks.units, WIDTH=blocks.width, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    return out
