"""Forward of the alignment: one program scores a tile of units against a tile of tokens; a second kernel
merges the tiles of an utterance in order."""

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    NO_UNIT,
    inverse_weight,
    launch,
    load_rows,
    load_span,
    norm,
    pool,
    rows,
    span_weight,
    unit_product,
)  # fmt: skip
from pad_kernels.backends.triton.configurations import ceil_div


@triton.jit
def larger(one, other):
    """The larger of two scores; NaN if either is."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def highest_score(score):
    """The largest score of each column; NaN where there is one, which tl.max would drop."""
    return tl.reduce(score, 0, larger)


@triton.jit
def lowest_index(index, score, top):
    """The lowest index of each column whose score is the highest, or NaN."""
    return tl.min(tl.where(score < top[None, :], NO_UNIT, index), 0)


@triton.jit(do_not_specialize=["frames", "tokens", "units", "token_tiles", "unit_tiles"])
def tile_kernel(
    speech, text, frame_prior, token_mask, start, end, highest, total, weighted, best,
    speech_batch, speech_frame, text_batch, text_token,
    frames, tokens, units, width, token_tiles, unit_tiles, inverse_temperature,
    HARD: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The softmax's state of each token over one tile of units, [batch, unit tile, token] each."""
    program = tl.program_id(0)
    token = program % token_tiles * TOKENS + tl.arange(0, TOKENS)
    unit_tile = program // token_tiles % unit_tiles
    unit = unit_tile * UNITS + tl.arange(0, UNITS)
    utterance = (program // token_tiles // unit_tiles).to(tl.int64)
    speech += utterance * speech_batch
    text += utterance * text_batch
    frame_prior += utterance * frames
    in_tile = token < tokens
    state = (utterance * unit_tiles + unit_tile) * tokens + token
    present = tl.load(token_mask + utterance * tokens + token, mask=in_tile, other=0) != 0
    if start is None:
        weight = tl.load(frame_prior + unit, mask=unit < units, other=0.0)
        prior = weight
    else:
        offset = utterance * units
        first, length = load_span(start + offset, end + offset, unit, unit < units, frames)
        weight, prior = span_weight(frame_prior, first, length)
        inverse = inverse_weight(weight)

    if (tl.max(weight, 0) > 0) & (tl.max(present.to(tl.int32), 0) > 0):
        cosine = tl.zeros([UNITS, TOKENS], tl.float32)
        unit_squares = tl.zeros([UNITS], tl.float32)
        token_squares = tl.zeros([TOKENS], tl.float32)
        for step in range(0, width, WIDTH):
            column = step + tl.arange(0, WIDTH)
            if start is None:
                unit_part = load_rows(speech, unit, speech_frame, weight > 0, column, width)
            else:
                unit_part = pool(speech, speech_frame, frame_prior, first, length, inverse, column, width, STAGES=1)
            text_part = load_rows(text, token, text_token, present, column, width)
            cosine = unit_product(unit_part, text_part, cosine)
            unit_part, text_part = unit_part.to(tl.float32), text_part.to(tl.float32)
            unit_squares += tl.sum(unit_part * unit_part, 1)
            token_squares += tl.sum(text_part * text_part, 1)
        cosine = cosine * (1 / norm(unit_squares))[:, None] * (1 / norm(token_squares))[None, :]
        score = cosine
        if not HARD:
            score = cosine * inverse_temperature + tl.log(tl.where(weight > 0, prior, 1.0))[:, None]
        score = tl.where((weight > 0)[:, None], score, -float("inf"))
        top = highest_score(score)
        tl.store(highest + state, top, mask=in_tile)
        tl.store(best + state, lowest_index(unit[:, None], score, top), mask=in_tile)
        if not HARD:
            exponential = tl.exp(score - top[None, :])
            tl.store(total + state, tl.sum(exponential, 0), mask=in_tile)
            tl.store(weighted + state, tl.sum(exponential * cosine, 0), mask=in_tile)
    else:
        nothing = tl.zeros([TOKENS], tl.float32)
        tl.store(highest + state, nothing - float("inf"), mask=in_tile)
        tl.store(best + state, tl.full([TOKENS], NO_UNIT, tl.int32), mask=in_tile)
        if not HARD:
            tl.store(total + state, nothing, mask=in_tile)
            tl.store(weighted + state, nothing, mask=in_tile)


@triton.jit(do_not_specialize=["tokens", "token_tiles", "unit_tiles"])
def merge_kernel(
    highest, total, weighted, best, token_mask, similarity, unit, log_normalizer,
    tokens, token_tiles, unit_tiles,
    HARD: tl.constexpr, TOKENS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The states of an utterance's unit tiles as one, tile by tile in order."""
    program = tl.program_id(0)
    token = program % token_tiles * TOKENS + tl.arange(0, TOKENS)
    utterance = (program // token_tiles).to(tl.int64)
    in_tile = token < tokens
    top = tl.full([TOKENS], -float("inf"), tl.float32)
    chosen = tl.full([TOKENS], NO_UNIT, tl.int32)
    sum = tl.zeros([TOKENS], tl.float32)
    weighted_sum = tl.zeros([TOKENS], tl.float32)
    for first in range(0, unit_tiles, TILES):
        tile = first + tl.arange(0, TILES)
        state = (utterance * unit_tiles + tile)[:, None] * tokens + token[None, :]
        there = (tile < unit_tiles)[:, None] & in_tile[None, :]
        score = tl.load(highest + state, mask=there, other=-float("inf"))
        candidate = tl.load(best + state, mask=there, other=NO_UNIT)
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
            sum = sum * kept + tl.sum(factor * tl.load(total + state, mask=there, other=0.0), 0)
            part = tl.sum(factor * tl.load(weighted + state, mask=there, other=0.0), 0)
            weighted_sum = weighted_sum * kept + part
        top = higher
    row = utterance * tokens + token
    present = (tl.load(token_mask + row, mask=in_tile, other=0) != 0) & (top != -float("inf"))
    result = top
    normalizer = tl.zeros([TOKENS], tl.float32)
    if not HARD:
        sum = tl.where(present, sum, 1.0)
        result = weighted_sum / sum
        normalizer = tl.where(present, top + tl.log(sum), 0.0)
    tl.store(similarity + row, tl.where(present, result, 0.0), mask=in_tile)
    tl.store(unit + row, tl.where(present, chosen, -1).to(tl.int64), mask=in_tile)
    tl.store(log_normalizer + row, normalizer, mask=in_tile)


def alignment_forward(speech, text, frame_prior, token_mask, start, end, temperature):
    """Similarity, best unit and log-normaliser of each token."""
    batch, frames, width = speech.shape
    tokens, units = text.shape[1], frames if start is None else start.shape[1]
    similarity = torch.empty(batch, tokens, dtype=torch.float32, device=speech.device)
    log_normalizer = torch.empty_like(similarity)
    unit = torch.empty_like(similarity, dtype=torch.int64)
    if similarity.numel() == 0 or frames == 0 or units == 0:
        return similarity.zero_(), unit.fill_(-1), log_normalizer.zero_()
    speech, text = rows(speech), rows(text)
    frame_prior = frame_prior.to(torch.float32).contiguous()
    token_mask = token_mask.contiguous().view(torch.uint8)
    if start is not None:
        start, end = (bound.to(torch.int32).contiguous() for bound in (start, end))

    hard = temperature == 0
    blocks = configurations.by_tokens(configurations.FORWARD, speech.dtype, tokens)
    token_tiles, unit_tiles = ceil_div(tokens, blocks.tokens), ceil_div(units, blocks.units)
    highest = torch.empty(batch, unit_tiles, tokens, dtype=torch.float32, device=speech.device)
    best = torch.empty_like(highest, dtype=torch.int32)
    total = weighted = None
    if not hard:
        total, weighted = torch.empty_like(highest), torch.empty_like(highest)
    launch(
        tile_kernel, batch * token_tiles * unit_tiles,
        speech, text, frame_prior, token_mask, start, end, highest, total, weighted, best,
        *speech.stride()[:2], *text.stride()[:2], frames, tokens, units, width, token_tiles, unit_tiles,
        0.0 if hard else 1 / temperature,
        HARD=hard, TOKENS=blocks.tokens, UNITS=blocks.units, WIDTH=blocks.width,
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    blocks = configurations.MERGE
    token_tiles = ceil_div(tokens, blocks.tokens)
    launch(
        merge_kernel, batch * token_tiles,
        highest, total, weighted, best, token_mask, similarity, unit, log_normalizer,
        tokens, token_tiles, unit_tiles,
        HARD=hard, TOKENS=blocks.tokens, TILES=blocks.units, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    return similarity, unit, log_normalizer
