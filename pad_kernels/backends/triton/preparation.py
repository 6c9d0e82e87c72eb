"""What the losses need before they score, in one launch: the weight of every position, the spans, and the norms of the
tokens.

A program has an utterance, and mostly waits: so it asks for all that it reads at once, and sums as seldom as it can.
Anchors are found without a sort: `topk` by halving between the lowest weight and the highest, `peaks` one by one; both
are then counted through in order of time.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pad_kernels.backends.triton import configurations, norms
from pad_kernels.backends.triton.common import INTERPRETED, NO_UNIT, launch
from pad_kernels.backends.triton.memory import Buffer, allocate, contiguous, operand
from pad_kernels.backends.triton.norms import norm_kernel
from pad_kernels.backends.triton.positions import (
    count_frames,
    position_weight,
    read_positions,
    scale_of,
    store_frame_weights,
    store_token_weights,
    weighed,
)
from pad_kernels.inputs import LossRequest, SpanInputs

# The compiler of Triton 3.3 does not index a tuple that is compiled in, as those after it do.
INDEXED_BY_VALUE = tl.constexpr(triton.__version__.startswith("3.3.") and not INTERPRETED)


@triton.jit
def store_spans(start, end, anchor, place, chosen, first, past, xi, frames, SCALES: tl.constexpr):
    """The spans of anchors: the one at `place` in order of time has units place * len(SCALES) and on."""
    for i in tl.static_range(len(SCALES)):
        if INDEXED_BY_VALUE:
            scale = tl.full([], SCALES.value[i], tl.float64)
        else:
            scale = tl.full([], SCALES[i], tl.float64)
        width = tl.floor(scale * xi + 0.5)
        # One beyond twice the frames covers them all.
        width = tl.minimum(tl.maximum(width, 1.0), 2.0 * frames + 1.0).to(tl.int32)
        low = anchor - width // 2
        unit = place * len(SCALES) + i
        tl.store(start + unit, tl.minimum(tl.maximum(low, first), past), mask=chosen)
        tl.store(end + unit, tl.minimum(tl.maximum(low + width, first), past), mask=chosen)


@triton.jit
def clear_counters(finished, utterance, batch, unit_tiles, BLOCK: tl.constexpr):
    """Zeros for the counters of an utterance, its tiles and, by the first one, the batch."""
    tl.store(finished + 1 + utterance, 0)
    if utterance == 0:
        tl.store(finished, 0)
    of_tiles = finished + 1 + batch + utterance * unit_tiles
    for begin in range(0, unit_tiles, BLOCK):
        tile = begin + tl.arange(0, BLOCK)
        tl.store(of_tiles + tile, tl.zeros([BLOCK], tl.int32), mask=tile < unit_tiles)


@triton.jit
def list_real_frames(scratch, mask, prior, utterance, frames, BLOCK: tl.constexpr):
    """The real frames in order of time, as scratch memory holds them."""
    rank = 0
    for begin in range(0, frames, BLOCK):
        frame = begin + tl.arange(0, BLOCK)
        _, real = position_weight(mask, prior, utterance, frame, frames)
        place = rank + tl.cumsum(real.to(tl.int32), 0) - 1
        tl.store(scratch + place, frame.to(tl.float32), mask=real)
        rank += tl.sum(real.to(tl.int32), 0)
    tl.debug_barrier()


@triton.jit
def highest_weights(
    weight, low, high, positive, wanted, mask, prior, utterance, frames, BLOCK: tl.constexpr
):  # fmt: skip
    """The bits of a weight: frames of higher ones are chosen, and of equal ones so many as is returned too. weight: of
    the first block. low, high: bits of the lowest weight above 0, of which there are `positive`, and of the highest."""
    # The first block stays in registers, or each step would wait for memory.
    held = weight.to(tl.int32, bitcast=True)
    # `wanted` frames or more have at least the bits `low`, fewer have more than `high`.
    at_least_low = positive
    more_than_high = 0
    while (low < high) & (at_least_low != wanted):
        middle = low + ((high - low + 1) >> 1)
        found = tl.sum((held >= middle).to(tl.int32), 0)
        for begin in range(BLOCK, frames, BLOCK):
            frame = begin + tl.arange(0, BLOCK)
            weight, real = position_weight(mask, prior, utterance, frame, frames)
            found += tl.sum((weight.to(tl.int32, bitcast=True) >= middle).to(tl.int32), 0)
        if found >= wanted:
            low = middle
            at_least_low = found
        else:
            high = middle - 1
            more_than_high = found
    return low, wanted - more_than_high


@triton.jit
def mark_peaks(scratch, mask, prior, utterance, frames, wanted, xi, BLOCK: tl.constexpr):
    """Weights in scratch memory, but 0 of frames that were ruled out and -1 of those that were chosen; their number."""
    for begin in range(0, frames, BLOCK):
        frame = begin + tl.arange(0, BLOCK)
        weight, real = position_weight(mask, prior, utterance, frame, frames)
        tl.store(scratch + frame, weight, mask=frame < frames)
    found = 0
    for _ in range(0, wanted):
        tl.debug_barrier()
        highest = 0.0
        best = frames
        for begin in range(0, frames, BLOCK):
            frame = begin + tl.arange(0, BLOCK)
            weight = tl.load(scratch + frame, mask=frame < frames, other=0.0)
            top = tl.max(weight, 0)
            place = tl.min(tl.where(weight == top, frame, NO_UNIT), 0)
            best = tl.where(top > highest, place, best)
            highest = tl.maximum(top, highest)
        if highest > 0:
            found += 1
            tl.debug_barrier()
            for begin in range(0, frames, BLOCK):
                frame = begin + tl.arange(0, BLOCK)
                weight = tl.load(scratch + frame, mask=frame < frames, other=0.0)
                distance = tl.abs(frame - best).to(tl.float64)
                weight = tl.where((weight > 0) & (distance < xi / 2), 0.0, weight)
                weight = tl.where(frame == best, -1.0, weight)
                tl.store(scratch + frame, weight, mask=frame < frames)
    tl.debug_barrier()
    return found


@triton.jit(
    do_not_specialize=[
        "batch", "frames", "tokens", "max_anchors", "anchor_count", "unit_tiles", "text_batch", "text_row", "width",
    ]
)  # fmt: skip
def prepare_kernel(
    speech_mask, speech_prior, text_mask, text_prior, num_tokens, num_anchors, xi_given,
    frame_weights, token_weights, start, end, scratch, finished, text, text_inverse, batch, frames, tokens,
    max_anchors, anchor_count, unit_tiles, text_batch, text_row, width,
    MASKED: tl.constexpr, ANCHORS: tl.constexpr, SCALES: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    NORM_ROWS: tl.constexpr, NORM_WIDTH: tl.constexpr,
):  # fmt: skip
    """An utterance; programs after those of the batch find norms of the tokens.
    num_tokens: None for the real tokens; num_anchors: None for anchor_count, below 0 the tokens."""
    if text is not None:
        if tl.program_id(0) >= batch:
            norm_kernel(text, text_inverse, text_batch, text_row, tokens, width, batch, NORM_ROWS, NORM_WIDTH)
            return
    utterance = tl.program_id(0).to(tl.int64)
    # Nothing waits before all that is needed first is on its way.
    frame_flag, frame_prior = read_positions(speech_mask, speech_prior, utterance, tl.arange(0, BLOCK), frames)
    token_flag, token_prior = read_positions(text_mask, text_prior, utterance, tl.arange(0, TOKENS), tokens)
    if finished is not None:
        clear_counters(finished, utterance, batch, unit_tiles, BLOCK)
    weight, real = weighed(frame_flag, frame_prior)
    count, positive, lowest, highest, first, past = count_frames(
        weight, real, speech_mask, speech_prior, utterance, frames, BLOCK
    )
    if frame_weights is not None:
        # Without a prior they are those of a mean.
        factor = 1.0 / tl.maximum(count, 1).to(tl.float32)
        if speech_prior is not None:
            factor = scale_of(highest)
        store_frame_weights(
            frame_weights, weight, real, speech_mask, speech_prior, utterance, frames, factor, MASKED, BLOCK
        )
    token_count = 0
    if token_weights is not None:
        token_weight, token_real = weighed(token_flag, token_prior)
        token_count = store_token_weights(
            token_weights, token_weight, token_real, text_mask, text_prior, utterance, tokens, TOKENS
        )

    if ANCHORS is not None:
        start += utterance * max_anchors * len(SCALES)
        end += utterance * max_anchors * len(SCALES)
        if num_tokens is not None:
            token_count = tl.load(num_tokens + utterance).to(tl.int32)
        wanted = token_count
        if num_anchors is not None:
            wanted = tl.minimum(tl.load(num_anchors + utterance), max_anchors).to(tl.int32)
        elif anchor_count >= 0:
            wanted = anchor_count
        wanted = tl.maximum(tl.minimum(wanted, max_anchors), 0)
        wanted = tl.where((count > 0) & (token_count > 0), wanted, 0)
        if xi_given is not None:
            xi = tl.load(xi_given + utterance)
        else:
            xi = count.to(tl.float64) / tl.maximum(token_count, 1).to(tl.float64)
        found = wanted
        if ANCHORS == "stride":
            scratch += utterance * frames
            list_real_frames(scratch, speech_mask, speech_prior, utterance, frames, BLOCK)
            for begin in range(0, wanted, BLOCK):
                place = begin + tl.arange(0, BLOCK)
                at = (2 * place.to(tl.int64) + 1) * count // (2 * tl.maximum(wanted, 1)).to(tl.int64)
                anchor = tl.load(scratch + at, mask=place < wanted, other=0.0).to(tl.int32)
                store_spans(start, end, anchor, place, place < wanted, first, past, xi, frames, SCALES)
        else:
            threshold = 0
            needed = 0
            if ANCHORS == "topk":
                found = tl.minimum(wanted, positive)
                threshold, needed = highest_weights(
                    weight, lowest, highest, positive, found, speech_mask, speech_prior, utterance, frames, BLOCK
                )
            else:
                scratch += utterance * frames
                found = mark_peaks(scratch, speech_mask, speech_prior, utterance, frames, wanted, xi, BLOCK)
            higher_before = 0
            ties_before = 0
            for begin in range(0, frames, BLOCK):
                frame = begin + tl.arange(0, BLOCK)
                if ANCHORS == "topk":
                    if begin > 0:
                        weight, real = position_weight(speech_mask, speech_prior, utterance, frame, frames)
                    bits = weight.to(tl.int32, bitcast=True)
                    higher, tie = bits > threshold, bits == threshold
                else:
                    weight = tl.load(scratch + frame, mask=frame < frames, other=0.0)
                    higher, tie = weight < 0, frame < 0
                both = higher.to(tl.int32) + (tie.to(tl.int32) << 16)
                ranks = tl.cumsum(both, 0)
                ties = ties_before + (ranks >> 16)
                place = higher_before + (ranks & 0xFFFF) + tl.minimum(ties, needed) - 1
                chosen = higher | (tie & (ties <= needed))
                store_spans(start, end, frame, place, chosen, first, past, xi, frames, SCALES)
                every = tl.sum(both, 0)
                higher_before += every & 0xFFFF
                ties_before += every >> 16
        units = max_anchors * len(SCALES)
        for begin in range(0, units, BLOCK):
            unit = begin + tl.arange(0, BLOCK)
            empty = (unit >= found * len(SCALES)) & (unit < units)
            tl.store(start + unit, tl.zeros([BLOCK], tl.int32), mask=empty)
            tl.store(end + unit, tl.zeros([BLOCK], tl.int32), mask=empty)


class Preparation(NamedTuple):
    """What an utterance's weights and spans are made of, in the order of the kernel; None where there is none."""

    speech_mask: Buffer | None
    speech_prior: Buffer | None
    text_mask: Buffer | None = None
    text_prior: Buffer | None = None
    num_tokens: Buffer | None = None  # None: the real ones
    num_anchors: Buffer | None = None  # None: one number for all
    xi: Buffer | None = None
    frame_weights: Buffer | None = None  # out
    token_weights: Buffer | None = None  # out
    start: Buffer | None = None  # out
    end: Buffer | None = None  # out
    scratch: Buffer | None = None  # float32 [B, M], of anchors other than topk
    finished: Buffer | None = None  # out: zeros, as `unfinished`


class Choice(NamedTuple):
    """How spans are chosen."""

    anchors: str | None = None  # None: no spans
    scales: tuple[float, ...] = ()
    room: int = 0  # for anchors of an utterance
    count: int = -1  # of anchors of every utterance; -1: as many as it has tokens, or what num_anchors says


def scratch_of(choice: Choice, batch, frames):
    """What the kernel wants of scratch memory, as `layout` takes it."""
    return None if choice.anchors in (None, "topk") else (torch.float32, batch, frames)


def prepare(
    given: Preparation, choice: Choice, device, batch, frames, tokens, tiles=0, masked=0.0,
    text: Tensor | None = None, text_inverse: Buffer | None = None,
):  # fmt: skip
    """Launch the preparation. tiles: how many of the spans of an utterance; masked: the weight of a masked frame;
    text_inverse: 1 / the norms of the tokens, where they are wanted."""
    blocks, of_norms = configurations.prepare_blocks(frames), configurations.NORM
    of_text = (0, 0, 0) if text is None else (*text.stride()[:2], text.shape[2])
    launch(
        prepare_kernel, device, batch if text is None else batch + norms.programs(batch, tokens), *given,
        operand(text), text_inverse, batch, frames, tokens, choice.room, choice.count, tiles, *of_text,
        MASKED=masked, ANCHORS=choice.anchors, SCALES=choice.scales, BLOCK=blocks.width, TOKENS=blocks.tokens,
        NORM_ROWS=of_norms.tokens, NORM_WIDTH=of_norms.width,
        enable_fp_fusion=False,  # widths of spans round as the reference does
        warps=blocks.warps, stages=blocks.stages, registers=blocks.registers,
    )  # fmt: skip


def choice_of(request: LossRequest) -> Choice:
    """How the spans of a loss are chosen, whose number of anchors is known."""
    selection = request.selection
    if selection is None:
        return Choice()
    wanted, tokens = selection.num_anchors, request.text.values.shape[1]
    room, count = (tokens, -1) if wanted is None else (wanted, wanted)
    return Choice(selection.anchors, selection.scales, room, count)


def select_spans(inputs: SpanInputs):
    """Start and end [B, max_anchors * len(scales)] int32 of the spans around each anchor frame."""
    weights, device = inputs.frame_weights, inputs.frame_weights.device
    batch, frames = weights.shape
    choice = Choice(inputs.anchors, tuple(inputs.scales), inputs.max_anchors)
    shape = batch, choice.room * len(choice.scales)
    if batch * frames * inputs.max_anchors == 0:
        start, end = (torch.zeros(shape, dtype=torch.int32, device=device) for _ in range(2))
        return start, end
    start, end = (torch.empty(shape, dtype=torch.int32, device=device) for _ in range(2))
    (scratch,) = allocate(device, scratch_of(choice, batch, frames))
    given = Preparation(
        contiguous(inputs.frame_mask, torch.uint8), contiguous(weights), num_tokens=contiguous(inputs.num_tokens),
        num_anchors=contiguous(inputs.num_anchors), xi=contiguous(inputs.xi),
        start=operand(start), end=operand(end), scratch=scratch,
    )  # fmt: skip
    prepare(given, choice, device, batch, frames, tokens=0)
    return start, end
