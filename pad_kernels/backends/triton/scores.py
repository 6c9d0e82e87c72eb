"""Forward of the alignment: one program scores a tile of units against a tile of tokens; the last one to end of an
utterance merges its tiles in order, and the last of all gives the loss where it is asked for."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    NO_UNIT,
    PRECISION,
    STRIDES_AND_SIZES,
    eights,
    highest_score,
    launch,
    load_rows,
    lowest_index,
    narrowed,
    norm,
    product,
    rows,
    strides_in_eights,
)  # fmt: skip
from pad_kernels.backends.triton.configurations import ceil_div, round_up
from pad_kernels.backends.triton.memory import Buffer, Layout, allocate, contiguous, layout, operand
from pad_kernels.backends.triton.pooled_units import pool_units
from pad_kernels.inputs import REDUCTIONS, AlignmentInputs, Saved

MEAN, NONE = (tl.constexpr(REDUCTIONS.index(name)) for name in ("mean", "none"))


class Sides(NamedTuple):
    """What is aligned: the embeddings, their rows contiguous, and what a kernel reads of the rest."""

    speech: Tensor
    text: Tensor
    frame_prior: Buffer
    token_weight: Buffer  # of the loss, or a mask as bytes
    start: Buffer | None = None
    end: Buffer | None = None
    spans: int = 0  # of an utterance

    @property
    def units(self) -> int:
        """Units of an utterance."""
        return self.speech.shape[1] if self.start is None else self.spans


class Scored(NamedTuple):
    """Units and what scoring them leaves for the backward pass; cosine is None unless kept."""

    units: Buffer
    strides: tuple[int, int]  # of an utterance, and of a unit
    unit_prior: Buffer
    unit_weight: Buffer | None
    unit_inverse: Buffer
    text_inverse: Buffer
    cosine: Buffer | None


class Outcome(NamedTuple):
    """What merging the tiles of an utterance writes, in the order of `merge`; None for what is not asked for."""

    similarity: Buffer | None = None
    unit: Buffer | None = None
    log_normalizer: Buffer | None = None
    distance: Buffer | None = None
    counts: Buffer | None = None
    finished: Buffer | None = None  # zeros [1 + B] int32: utterances, and tiles of each utterance, that have ended
    loss: Buffer | None = None
    grad_scale: Buffer | None = None


NOTHING = Outcome()


@triton.jit
def is_last(finished, programs):
    """Whether this program is the last of those that count `finished` up; it may then read, past its own cache
    (".cg"), what the others have written."""
    tl.debug_barrier()
    before = tl.atomic_add(finished, 1)
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def reduce_batch(
    found, counted, utterance, distance, counts, finished, loss, grad_scale, batch, reduction, BATCH: tl.constexpr
):
    """Each utterance's distance, and by whoever comes last the loss: their sum or mean, in order, and what each
    counts. reduction: a place in REDUCTIONS."""
    tl.store(distance + utterance, found)
    tl.store(counts + utterance, counted.to(tl.int32))
    if is_last(finished, batch):
        sum = tl.zeros([BATCH], tl.float32)
        number = tl.zeros([BATCH], tl.int32)
        for first in range(0, batch, BATCH):
            place = first + tl.arange(0, BATCH)
            sum += tl.load(distance + place, mask=place < batch, other=0.0, cache_modifier=".cg")
            number += tl.load(counts + place, mask=place < batch, other=0, cache_modifier=".cg")
        factor = 1.0
        if reduction == MEAN:
            factor = 1.0 / tl.maximum(tl.sum(number, 0), 1).to(tl.float32)
        if reduction != NONE:
            tl.store(loss, tl.sum(sum, 0) * factor)
        tl.store(grad_scale, factor)


@triton.jit
def merge(
    highest, total, weighted, best, token_weight, similarity, unit, log_normalizer,
    distance, counts, finished, loss, grad_scale, utterance, batch, tokens, unit_tiles, reduction,
    HARD: tl.constexpr, TOKENS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """An utterance: the states of its unit tiles as one, tile by tile in order; for a loss its distance too, and by the
    last utterance to end, the loss of the batch."""
    lost = tl.zeros([TOKENS], tl.float32)
    aligned = tl.zeros([TOKENS], tl.int32)
    for token_first in range(0, tokens, TOKENS):
        token = token_first + tl.arange(0, TOKENS)
        in_tile = token < tokens
        row = utterance * tokens + token
        weight = tl.load(token_weight + row, mask=in_tile, other=0).to(tl.float32)
        top = tl.full([TOKENS], -float("inf"), tl.float32)
        chosen = tl.full([TOKENS], NO_UNIT, tl.int32)
        sum = tl.zeros([TOKENS], tl.float32)
        weighted_sum = tl.zeros([TOKENS], tl.float32)
        for first in range(0, unit_tiles, TILES):
            tile = first + tl.arange(0, TILES)
            state = (utterance * unit_tiles + tile)[:, None] * tokens + token[None, :]
            there = (tile < unit_tiles)[:, None] & in_tile[None, :]
            score = tl.load(highest + state, mask=there, cache_modifier=".cg", other=-float("inf"))
            candidate = tl.load(best + state, mask=there, cache_modifier=".cg", other=NO_UNIT)
            here = highest_score(score)
            candidate = lowest_index(candidate, score, here)
            # Neither comparison holds for a NaN that is there already: it stays.
            better = (here > top) | ((here != here) & (top == top))
            chosen = tl.where(better, candidate, chosen)
            higher = tl.where(better, here, top)
            if not HARD:
                reference = tl.where(higher == -float("inf"), 0.0, higher)
                factor = tl.exp(score - reference[None, :])
                kept = tl.exp(top - reference)
                sum = sum * kept + tl.sum(
                    factor * tl.load(total + state, mask=there, other=0.0, cache_modifier=".cg"), 0
                )
                part = tl.sum(factor * tl.load(weighted + state, mask=there, other=0.0, cache_modifier=".cg"), 0)
                weighted_sum = weighted_sum * kept + part
            top = higher
        valid = (weight > 0) & (top != -float("inf"))
        result = top
        if not HARD:
            sum = tl.where(valid, sum, 1.0)
            result = weighted_sum / sum
            tl.store(log_normalizer + row, tl.where(valid, top + tl.log(sum), 0.0), mask=in_tile)
        else:
            tl.store(log_normalizer + row, tl.zeros([TOKENS], tl.float32), mask=in_tile)
        result = tl.where(valid, result, 0.0)
        tl.store(similarity + row, result, mask=in_tile)
        tl.store(unit + row, tl.where(valid, chosen, -1).to(tl.int64), mask=in_tile)
        lost += weight * (1 - result)
        aligned = tl.maximum(aligned, valid.to(tl.int32))
    if loss is not None:
        counted = tl.max(aligned, 0) > 0
        found = tl.where(counted, tl.sum(lost, 0), 0.0)
        reduce_batch(found, counted, utterance, distance, counts, finished, loss, grad_scale, batch, reduction, BATCH)


@triton.jit(do_not_specialize=[*STRIDES_AND_SIZES, "batch", "token_tiles", "unit_tiles", "reduction"])
def score_kernel(
    units, remainder, text, unit_prior, token_weight, unit_inverse, text_inverse, kept, highest, total, weighted, best,
    similarity, unit_found, log_normalizer, distance, counts, finished, loss, grad_scale,
    unit_batch, unit_row, text_batch, text_row, batch, unit_count, tokens, width, token_pitch,
    token_tiles, unit_tiles, reduction, inverse_temperature, one,
    HARD: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    MERGED_TOKENS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """The softmax's state of each token over one tile of units, [batch, unit tile, token] each; the last tile of an
    utterance to end merges them. Neighbours are of different utterances, so that each part of the chip has some of
    the short ones."""
    unit_batch, unit_row, text_batch, text_row = strides_in_eights(unit_batch, unit_row, text_batch, text_row)
    width = eights(width)
    program = tl.program_id(0)
    utterance = (program % batch).to(tl.int64)
    token = program // batch % token_tiles * TOKENS + tl.arange(0, TOKENS)
    unit_tile = program // batch // token_tiles
    unit = unit_tile * UNITS + tl.arange(0, UNITS)
    in_tile = token < tokens
    in_units = unit < unit_count
    prior = tl.load(unit_prior + utterance * unit_count + unit, mask=in_units, other=0.0)
    valid_unit = prior > 0
    valid_token = tl.load(token_weight + utterance * tokens + token, mask=in_tile, other=0) > 0
    units += utterance * unit_batch
    text += utterance * text_batch
    state = (utterance * unit_tiles + unit_tile) * tokens + token
    some_token = tl.max(valid_token.to(tl.int32), 0) > 0
    # The first tile of units also finds the norms of the text.
    if some_token & ((tl.max(valid_unit.to(tl.int32), 0) > 0) | (unit_tile == 0)):
        cosine = tl.zeros([UNITS, TOKENS], tl.float32)
        unit_squares = tl.zeros([UNITS], tl.float32)
        text_squares = tl.zeros([TOKENS], tl.float32)
        for step in range(0, width, WIDTH):
            column = step + tl.arange(0, WIDTH)
            unit_part = load_rows(units, unit, unit_row, valid_unit, column, width)
            text_part = load_rows(text, token, text_row, valid_token, column, width)
            part = product(unit_part, tl.trans(text_part), tl.zeros([UNITS, TOKENS], tl.float32), PRECISION)
            whole = unit_part.to(tl.float32)
            if remainder is not None:
                below = load_rows(remainder + utterance * unit_batch, unit, unit_row, valid_unit, column, width)
                part = product(below, tl.trans(text_part), part, PRECISION)
                whole += below.to(tl.float32)
            # Left to itself, Triton up to 3.7 lets Hopper's asynchronous product read a buffer that is being refilled,
            # because the loaded tiles are used otherwise too: a product whose result is wanted at once is waited for.
            cosine += part * one
            unit_squares += tl.sum(whole * whole, 1)
            text_whole = text_part.to(tl.float32)
            text_squares += tl.sum(text_whole * text_whole, 1)
        unit_scale, text_scale = 1 / norm(unit_squares), 1 / norm(text_squares)
        cosine = cosine * unit_scale[:, None] * text_scale[None, :]
        # Every tile of tokens finds the same bits.
        tl.store(unit_inverse + utterance * unit_count + unit, unit_scale, mask=in_units)
        if unit_tile == 0:
            tl.store(text_inverse + utterance * tokens + token, text_scale, mask=in_tile)
        if kept is not None:
            kept += utterance * unit_count * token_pitch
            tl.store(kept + unit[:, None] * token_pitch + token[None, :], narrowed(cosine, kept.dtype.element_ty),
                     mask=in_units[:, None] & (token < token_pitch)[None, :])  # fmt: skip
        score = cosine
        if not HARD:
            score = cosine * inverse_temperature + tl.log(tl.where(valid_unit, prior, 1.0))[:, None]
        score = tl.where(valid_unit[:, None], score, -float("inf"))
        top = highest_score(score)
        tl.store(highest + state, top, mask=in_tile)
        tl.store(best + state, lowest_index(unit[:, None], score, top), mask=in_tile)
        if not HARD:
            exponential = tl.where(valid_unit[:, None], tl.exp(score - top[None, :]), 0.0)
            tl.store(total + state, tl.sum(exponential, 0), mask=in_tile)
            tl.store(weighted + state, tl.sum(exponential * cosine, 0), mask=in_tile)
    else:
        nothing = tl.zeros([TOKENS], tl.float32)
        tl.store(highest + state, nothing - float("inf"), mask=in_tile)
        tl.store(best + state, tl.full([TOKENS], NO_UNIT, tl.int32), mask=in_tile)
        if not HARD:
            tl.store(total + state, nothing, mask=in_tile)
            tl.store(weighted + state, nothing, mask=in_tile)
    if similarity is not None:
        if is_last(finished + 1 + utterance, token_tiles * unit_tiles):
            merge(
                highest, total, weighted, best, token_weight, similarity, unit_found, log_normalizer,
                distance, counts, finished, loss, grad_scale, utterance, batch, tokens, unit_tiles, reduction,
                HARD, MERGED_TOKENS, TILES, BATCH,
            )  # fmt: skip


def kept_layout(sides: Sides, temperature, cosine) -> Layout:
    """Room for what `Scored` has besides the embeddings themselves; `cosine`: for the cosines too."""
    (batch, _, width), tokens, dtype = sides.speech.shape, sides.text.shape[1], sides.speech.dtype
    count, float32 = sides.units, torch.float32
    of_spans = sides.start is not None
    kind = configurations.cosine_dtype(dtype, temperature)
    return layout(
        (dtype, batch, count, width) if of_spans else None,
        (float32, batch, count) if of_spans else None,
        (float32, batch, count) if of_spans else None,
        (float32, batch, count),
        (float32, batch, tokens),
        (kind, batch, count, round_up(tokens, 16)) if cosine else None,
    )


def scored_in(memory: Tensor, room: Layout, sides: Sides) -> Scored:
    """What `score` has left in that memory."""
    units, unit_prior, unit_weight, *others = room.buffers(memory)
    if sides.start is None:
        return Scored(operand(sides.speech), sides.speech.stride()[:2], sides.frame_prior, None, *others)
    width = sides.speech.shape[2]
    return Scored(units, (sides.units * width, width), unit_prior, unit_weight, *others)


def score(sides: Sides, scored: Scored, temperature, outcome=NOTHING, reduction="none"):
    """Score all units against all tokens, and fill `scored` and the outcome that is asked for."""
    speech, text = sides.speech, sides.text
    (batch, tokens, width), count, device = text.shape, sides.units, text.device
    blocks = configurations.by_tokens(
        configurations.SCORE if sides.start is None else configurations.SCORE_SPANS, speech.dtype, tokens
    )
    merged = configurations.MERGE
    token_tiles, unit_tiles = ceil_div(tokens, blocks.tokens), ceil_div(count, blocks.units)
    hard, spans_in_halves = temperature == 0, sides.start is not None and speech.dtype != torch.float32
    state = torch.float32, batch, unit_tiles, tokens
    highest, best, total, weighted, remainder = allocate(
        device, state, (torch.int32, *state[1:]), None if hard else state, None if hard else state,
        (speech.dtype, batch, count, width) if spans_in_halves else None,
    )  # fmt: skip
    if sides.start is not None:
        pool_units(sides, scored, remainder)
    launch(
        score_kernel, device, batch * token_tiles * unit_tiles,
        scored.units, remainder, operand(text), scored.unit_prior, sides.token_weight, scored.unit_inverse,
        scored.text_inverse, scored.cosine, highest, total, weighted, best, *outcome,
        *scored.strides, *text.stride()[:2],
        batch, count, tokens, width, round_up(tokens, 16), token_tiles, unit_tiles, REDUCTIONS.index(reduction),
        0.0 if hard else 1 / temperature, 1.0,
        HARD=hard, TOKENS=blocks.tokens, UNITS=blocks.units, WIDTH=blocks.width, PRECISION=PRECISION,
        MERGED_TOKENS=merged.tokens, TILES=merged.units, BATCH=merged.group,
        warps=blocks.warps, stages=blocks.stages, registers=blocks.registers,
    )  # fmt: skip


def unfinished(batch, device):
    """Zeros that programs count up as they end: one for the batch, and one for each utterance."""
    return torch.zeros(1 + batch, dtype=torch.int32, device=device)


def alignment_forward(inputs: AlignmentInputs) -> Saved:
    """Similarity, best unit and log-normaliser of each token."""
    (batch, tokens), device = inputs.text.shape[:2], inputs.text.device
    if is_empty(inputs.speech, inputs.text, inputs.start):
        similarity = torch.zeros(batch, tokens, dtype=torch.float32, device=device)
        return Saved(similarity, torch.full_like(similarity, -1, dtype=torch.int64), torch.zeros_like(similarity))
    sides = sides_of(inputs)
    dtypes = torch.float32, torch.int64, torch.float32
    saved = Saved(*(torch.empty(batch, tokens, dtype=dtype, device=device) for dtype in dtypes))
    outcome = Outcome(*map(operand, saved), finished=operand(unfinished(batch, device)))
    room = kept_layout(sides, inputs.temperature, cosine=False)
    score(sides, scored_in(room.allocate(device), room, sides), inputs.temperature, outcome)
    return saved


def is_empty(speech, text, start):
    """Whether there is no unit or no token at all."""
    return text.shape[0] * text.shape[1] * speech.shape[1] == 0 or start is not None and start.shape[1] == 0


def sides_of(inputs: AlignmentInputs) -> Sides:
    """The tensors as the kernels read them: what they are not already is copied."""
    return Sides(
        rows(inputs.speech), rows(inputs.text), contiguous(inputs.frame_prior.to(torch.float32)),
        contiguous(inputs.token_mask, torch.uint8), contiguous(inputs.start), contiguous(inputs.end),
        0 if inputs.start is None else inputs.start.shape[1],
    )  # fmt: skip
