"""Forward of the alignment: one program scores a tile of frames against a tile of tokens; the last one to end of an
utterance merges its tiles in order, and the last of all gives the loss where it is asked for. Spans: span_scores.py."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    PRECISION,
    STRIDES_AND_SIZES,
    add_product,
    eights,
    launch,
    load_rows,
    narrowed,
    norm,
    product,
    rows,
    strides_in_eights,
)  # fmt: skip
from pad_kernels.backends.triton.configurations import ceil_div, round_up
from pad_kernels.backends.triton.memory import Buffer, Layout, contiguous, layout, operand
from pad_kernels.backends.triton.norms import find_norms
from pad_kernels.backends.triton.reductions import (
    Outcome,
    is_last,
    keep_no_state,
    keep_state,
    merge,
    states,
    unfinished,
)
from pad_kernels.backends.triton.span_scores import score_spans
from pad_kernels.inputs import REDUCTIONS, AlignmentInputs, Saved

MOST_NUMBERS = 2**31 - 1


class Sides(NamedTuple):
    """What is aligned: the embeddings, their rows contiguous, and what a kernel reads of the rest."""

    speech: Tensor
    text: Tensor
    frame_weights: Buffer
    token_weights: Buffer  # of the loss, or a mask as bytes
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
    remainder: Buffer | None  # of spans in half precision what rounding left over, laid out as the units
    strides: tuple[int, int]  # of an utterance, and of a unit
    unit_prior: Buffer  # of the softmax: the mean weight of the unit's real frames
    inverse_total: Buffer | None  # of spans 1 / the sum of their frames' weights
    unit_inverse: Buffer
    text_inverse: Buffer
    cosine: Buffer | None


@triton.jit
def no_squares(kind: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Where `add_squares` begins."""
    if kind == tl.float32:
        return tl.zeros([ROWS, WIDTH // 4], tl.float32)
    else:
        return tl.zeros([ROWS, ROWS], tl.float32)


@triton.jit
def add_squares(part, squares):
    """squares + those of the rows at some columns: in half precision by the matrix units, which have time, as the
    diagonal of a product, so that the tile is read by nothing else than asynchronous products."""
    if part.dtype == tl.float32:
        return squares + tl.sum(tl.reshape(part * part, (part.shape[0], part.shape[1] // 4, 4)), 2)
    else:
        return product(part, tl.trans(part), squares, None)


@triton.jit
def sum_of_squares(squares, kind: tl.constexpr, ROWS: tl.constexpr):
    """Of each row."""
    if kind == tl.float32:
        return tl.sum(squares, 1)
    else:
        row = tl.arange(0, ROWS)
        return tl.sum(tl.where(row[:, None] == row[None, :], squares, 0.0), 1)


@triton.jit(do_not_specialize=[*STRIDES_AND_SIZES, "batch", "token_tiles", "unit_tiles", "reduction"])
def score_kernel(
    units, text, unit_prior, token_weights, unit_inverse, text_inverse, kept, highest, total, weighted, best,
    similarity, unit_found, log_normalizer, distance, counts, finished, loss, grad_scale,
    unit_batch, unit_row, text_batch, text_row, batch, unit_count, tokens, width, token_pitch,
    token_tiles, unit_tiles, reduction, inverse_temperature,
    HARD: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    MERGED_TOKENS: tl.constexpr, TILES: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """The softmax's state of each token over one tile of units, [batch, unit tile, token] each; the last tile of an
    utterance to end merges them. Neighbors are of different utterances, so that each part of the chip has some of
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
    valid_token = tl.load(token_weights + utterance * tokens + token, mask=in_tile, other=0) > 0
    units += utterance * unit_batch
    text += utterance * text_batch
    state = (utterance * unit_tiles + unit_tile) * tokens + token
    some_token = tl.max(valid_token.to(tl.int32), 0) > 0
    if some_token & (tl.max(valid_unit.to(tl.int32), 0) > 0):
        text_scale = tl.load(text_inverse + utterance * tokens + token, mask=valid_token, other=0.0)
        cosine = tl.zeros([UNITS, TOKENS], tl.float32)
        squares = no_squares(units.dtype.element_ty, UNITS, WIDTH)
        for step in range(0, width, WIDTH):
            column = step + tl.arange(0, WIDTH)
            unit_part = load_rows(units, unit, unit_row, valid_unit, column, width)
            text_part = load_rows(text, token, text_row, valid_token, column, width)
            cosine = add_product(unit_part, tl.trans(text_part), cosine, PRECISION)
            squares = add_squares(unit_part, squares)
        unit_scale = 1 / norm(sum_of_squares(squares, units.dtype.element_ty, UNITS))
        cosine = cosine * unit_scale[:, None] * text_scale[None, :]
        tl.store(unit_inverse + utterance * unit_count + unit, unit_scale, mask=in_units)
        if kept is not None:
            kept += (utterance * unit_count + unit_tile * UNITS) * token_pitch
            lane = tl.arange(0, UNITS)
            tl.store(kept + lane[:, None] * token_pitch + token[None, :], narrowed(cosine, kept.dtype.element_ty),
                     mask=in_units[:, None] & (token < token_pitch)[None, :])  # fmt: skip
        keep_state(
            cosine, prior, unit, valid_unit, state, in_tile, highest, total, weighted, best, inverse_temperature, HARD
        )
    else:
        keep_no_state(state, in_tile, highest, total, weighted, best, TOKENS, HARD)
    if similarity is not None:
        if is_last(finished + 1 + utterance, token_tiles * unit_tiles):
            merge(
                highest, total, weighted, best, token_weights, similarity, unit_found, log_normalizer,
                distance, counts, finished, loss, grad_scale, utterance, batch, tokens, unit_tiles, reduction,
                HARD, MERGED_TOKENS, TILES, BATCH,
            )  # fmt: skip


def kept_layout(sides: Sides, temperature, differentiable) -> Layout:
    """Room for what `Scored` has besides the embeddings themselves; `differentiable`: for what only a backward pass
    reads too. Raises ValueError for an utterance of more numbers than the kernels count in 32 bits."""
    (batch, frames, width), tokens, dtype = sides.speech.shape, sides.text.shape[1], sides.speech.dtype
    count, float32 = sides.units, torch.float32
    for name, rows_of_one in (("speech", max(frames, count)), ("text", tokens)):
        if rows_of_one * width > MOST_NUMBERS:
            raise ValueError(
                f"{name}: got {rows_of_one} rows of width {width} in an utterance, expected at most {MOST_NUMBERS} "
                "numbers with the triton backend"
            )
    of_spans = sides.start is not None
    kind = configurations.cosine_dtype(dtype, temperature)
    return layout(
        (dtype, batch, count, width) if of_spans and (differentiable or dtype == float32) else None,
        (dtype, batch, count, width) if of_spans and differentiable and dtype != float32 else None,
        (float32, batch, count) if of_spans else None,
        (float32, batch, count) if of_spans else None,
        (float32, batch, count),
        (float32, batch, tokens),
        (kind, batch, count, round_up(tokens, 16)) if differentiable and temperature > 0 else None,
    )


def scored_in(memory: Tensor, room: Layout, sides: Sides) -> Scored:
    """What `score` has left in that memory."""
    units, remainder, unit_prior, inverse_total, *others = room.buffers(memory)
    if sides.start is None:
        return Scored(operand(sides.speech), None, sides.speech.stride()[:2], sides.frame_weights, None, *others)
    width = sides.speech.shape[2]
    return Scored(units, remainder, (sides.units * width, width), unit_prior, inverse_total, *others)


def score(sides: Sides, scored: Scored, temperature, outcome: Outcome, reduction="none"):
    """Score all units against all tokens, whose norms are known, and fill what else `scored` has and the outcome that
    is asked for."""
    speech, text = sides.speech, sides.text
    (batch, tokens, width), count, device = text.shape, sides.units, text.device
    hard, merged = temperature == 0, configurations.MERGE
    common = REDUCTIONS.index(reduction), 0.0 if hard else 1 / temperature
    constants = dict(
        HARD=hard, PRECISION=PRECISION, MERGED_TOKENS=merged.tokens, TILES=merged.units, BATCH=merged.group
    )
    if sides.start is not None:
        score_spans(sides, scored, outcome, common, constants)
        return
    blocks = configurations.by_tokens(configurations.SCORE, speech.dtype, tokens)
    token_tiles, unit_tiles = ceil_div(tokens, blocks.tokens), ceil_div(count, blocks.units)
    launch(
        score_kernel, device, batch * token_tiles * unit_tiles,
        scored.units, operand(text), scored.unit_prior, sides.token_weights, scored.unit_inverse,
        scored.text_inverse, scored.cosine, *states(device, (batch, unit_tiles, tokens), hard), *outcome,
        *scored.strides, *text.stride()[:2],
        batch, count, tokens, width, round_up(tokens, 16), token_tiles, unit_tiles, *common,
        TOKENS=blocks.tokens, UNITS=blocks.units, WIDTH=blocks.width, **constants,
        warps=blocks.warps, stages=blocks.stages, registers=blocks.registers,
    )  # fmt: skip


def alignment_forward(inputs: AlignmentInputs) -> Saved:
    """Similarity, best unit and log-normalizer of each token."""
    (batch, tokens), device = inputs.text.shape[:2], inputs.text.device
    if is_empty(inputs.speech, inputs.text, inputs.start):
        similarity = torch.zeros(batch, tokens, dtype=torch.float32, device=device)
        return Saved(similarity, torch.full_like(similarity, -1, dtype=torch.int64), torch.zeros_like(similarity))
    sides = sides_of(inputs)
    dtypes = torch.float32, torch.int64, torch.float32
    saved = Saved(*(torch.empty(batch, tokens, dtype=dtype, device=device) for dtype in dtypes))
    score_alone(sides, inputs.temperature, saved, differentiable=False)
    return saved


def score_alone(sides: Sides, temperature, saved: Saved | None, differentiable) -> Scored:
    """As `score`, without a preparation before it. saved: filled, unless it is None."""
    (batch, tokens), device = sides.text.shape[:2], sides.text.device
    room = kept_layout(sides, temperature, differentiable)
    scored = scored_in(room.allocate(device), room, sides)
    find_norms(sides.text, scored.text_inverse)
    tiles = configurations.span_tiles(sides.spans, sides.text.dtype, tokens)
    outcome = Outcome(*map(operand, saved or ()), finished=operand(unfinished(device, batch, tiles)))
    score(sides, scored, temperature, outcome)
    return scored


def is_empty(speech, text, start):
    """Whether there is no unit or no token at all."""
    return text.shape[0] * text.shape[1] * speech.shape[1] == 0 or start is not None and start.shape[1] == 0


def sides_of(inputs: AlignmentInputs) -> Sides:
    """The tensors as the kernels read them: what they are not already is copied."""
    return Sides(
        rows(inputs.speech), rows(inputs.text), contiguous(inputs.frame_weights.to(torch.float32)),
        contiguous(inputs.token_mask, torch.uint8), contiguous(inputs.start), contiguous(inputs.end),
        0 if inputs.start is None else inputs.start.shape[1],
    )  # fmt: skip
