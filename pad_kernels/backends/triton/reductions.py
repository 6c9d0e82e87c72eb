"""How the tiles of an utterance, and the utterances of a batch, become one: whichever program ends last does it, in
their order."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton.common import NO_UNIT, highest_score, lowest_index
from pad_kernels.backends.triton.memory import Buffer, allocate
from pad_kernels.inputs import REDUCTIONS

MEAN, NONE = (tl.constexpr(REDUCTIONS.index(name)) for name in ("mean", "none"))


class Outcome(NamedTuple):
    """What merging the tiles of an utterance writes, in the order of `merge`; None for what is not asked for."""

    similarity: Buffer | None = None
    unit: Buffer | None = None
    log_normalizer: Buffer | None = None
    distance: Buffer | None = None
    counts: Buffer | None = None
    finished: Buffer | None = None  # as `unfinished`
    loss: Buffer | None = None
    grad_scale: Buffer | None = None


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
def keep_state(
    cosine, prior, unit, valid_unit, state, in_tile, highest, total, weighted, best, inverse_temperature,
    HARD: tl.constexpr,
):  # fmt: skip
    """Of a tile of units and tokens what the softmax of each token needs: the highest score and whose it is, the sum
    of the exponentials, and that weighted by the cosines."""
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


@triton.jit
def keep_no_state(state, in_tile, highest, total, weighted, best, TOKENS: tl.constexpr, HARD: tl.constexpr):
    """As `keep_state`, where no unit of the tile or no token takes part."""
    nothing = tl.zeros([TOKENS], tl.float32)
    tl.store(highest + state, nothing - float("inf"), mask=in_tile)
    tl.store(best + state, tl.full([TOKENS], NO_UNIT, tl.int32), mask=in_tile)
    if not HARD:
        tl.store(total + state, nothing, mask=in_tile)
        tl.store(weighted + state, nothing, mask=in_tile)


@triton.jit
def merge(
    highest, total, weighted, best, token_weights, similarity, unit, log_normalizer,
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
        weight = tl.load(token_weights + row, mask=in_tile, other=0).to(tl.float32)
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


def counters(batch, tiles=0):
    """How many counters: of utterances that have ended, of each utterance's tiles, and of each tile's steps."""
    return 1 + batch + batch * tiles


def unfinished(device, batch, tiles=0):
    """Zeros that programs count up as they end."""
    return torch.zeros(counters(batch, tiles), dtype=torch.int32, device=device)


def states(device, shape, hard):
    """Room for what `keep_state` leaves: the highest score, the sum, the weighted sum and the best unit."""
    of_tokens = torch.float32, *shape
    sums = None if hard else of_tokens
    return allocate(device, of_tokens, sums, sums, (torch.int32, *shape))
