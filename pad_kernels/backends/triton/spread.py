"""From the gradient of the units to that of the frames: every frame gathers from the units that cover it."""

import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import PRECISION, eights, launch, load_rows, load_span, narrowed, product
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.memory import operand


@triton.jit(do_not_specialize=["frames", "units", "width", "frame_tiles", "steps"])
def spread_kernel(
    grad_units, frame_weights, start, end, out, frames, units, width, frame_tiles, steps,
    FRAMES: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, SCAN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of frames at GROUP steps of columns: weight times the sum over the covering units, in their order."""
    width = eights(width)
    program = tl.program_id(0)
    step = program % steps
    frame_tile = program // steps % frame_tiles
    utterance = (program // steps // frame_tiles).to(tl.int64)
    low = frame_tile * FRAMES
    frame = low + tl.arange(0, FRAMES)
    in_tile = frame < frames
    weight = tl.load(frame_weights + utterance * frames + frame, mask=in_tile, other=0.0)
    start += utterance * units
    end += utterance * units
    grad_units += utterance * units * width
    out += (utterance * frames + low) * width
    lowest, past_highest = units, 0
    if tl.max(weight, 0) > 0:
        for first_unit in range(0, units, SCAN):
            unit = first_unit + tl.arange(0, SCAN)
            first, past = load_span(start, end, unit, unit < units, frames)
            covers = (past > low) & (first < low + FRAMES) & (past > first)
            lowest = tl.minimum(lowest, tl.min(tl.where(covers, unit, units), 0))
            past_highest = tl.maximum(past_highest, tl.max(tl.where(covers, unit + 1, 0), 0))
    for first_column in range(step * GROUP * WIDTH, tl.minimum((step + 1) * GROUP * WIDTH, width), WIDTH):
        column = first_column + tl.arange(0, WIDTH)
        found = tl.zeros([FRAMES, WIDTH], tl.float32)
        for first_unit in range(lowest, past_highest, UNITS):
            unit = first_unit + tl.arange(0, UNITS)
            first, past = load_span(start, end, unit, unit < past_highest, frames)
            inside = (frame[:, None] >= first[None, :]) & (frame[:, None] < past[None, :])
            # What covers no frame of the tile is read too: it waits for no span, and counts as zero times a number.
            part = load_rows(grad_units, unit, width, unit < past_highest, column, width)
            found = product(inside.to(tl.float32).to(part.dtype), part, found, PRECISION)
        found = tl.where((weight > 0)[:, None], found * weight[:, None], 0.0)
        place = out + tl.arange(0, FRAMES)[:, None] * width + column[None, :]
        tl.store(place, narrowed(found, out.dtype.element_ty),
                 mask=in_tile[:, None] & (column < width)[None, :])  # fmt: skip


def spread_to_frames(grad_units, sides, out):
    """Fill the gradient [B, M, D] of the frames from that of the units [B, U, D] over the sum of their weights."""
    batch, frames, width = out.shape
    blocks = configurations.by_itemsize(configurations.SPREAD, grad_units.kind)
    frame_tiles, steps = ceil_div(frames, blocks.tokens), ceil_div(width, blocks.width * blocks.group)
    launch(
        spread_kernel, out.device, batch * frame_tiles * steps,
        grad_units, sides.frame_weights, sides.start, sides.end, operand(out), frames, sides.units, width, frame_tiles,
        steps, FRAMES=blocks.tokens, UNITS=blocks.units, WIDTH=blocks.width, GROUP=blocks.group,
        SCAN=configurations.SCAN, PRECISION=PRECISION, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
