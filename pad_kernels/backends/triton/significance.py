"""Column sums of the attention: rows are normalized in one pass over the keys, unless their log-sum-exp is
given, and summed by columns in a second one. A program owns its columns, so that nothing is summed out of order.
"""

import math

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import PRECISION, launch, load_rows, product, rows
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.memory import allocate, operand


@triton.jit
def past_last_real(mask, length, COUNT: tl.constexpr):
    """One more than the last real position."""
    last = tl.zeros([COUNT], tl.int32)
    for first in range(0, length, COUNT):
        place = first + tl.arange(0, COUNT)
        real = tl.load(mask + place, mask=place < length, other=0) != 0
        last = tl.maximum(last, tl.where(real, place + 1, 0))
    return tl.max(last, 0)


@triton.jit
def scores(
    own, own_base, own_row, own_stride, own_present, other_base, other_row, other_stride, other_present, width,
    OWN: tl.constexpr, OTHER: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """own other^T; `own` is held by the caller where WIDTH columns are the WHOLE of them."""
    found = tl.zeros([OWN, OTHER], tl.float32)
    if WHOLE:
        part = load_rows(other_base, other_row, other_stride, other_present, tl.arange(0, WIDTH), width)
        found = product(own, tl.trans(part), found, PRECISION)
    else:
        for step in range(0, width, WIDTH):
            column = step + tl.arange(0, WIDTH)
            own_part = load_rows(own_base, own_row, own_stride, own_present, column, width)
            part = load_rows(other_base, other_row, other_stride, other_present, column, width)
            found = product(own_part, tl.trans(part), found, PRECISION)
    return found


@triton.jit(do_not_specialize=["length", "tiles"])
def normalizer_kernel(
    query, key, mask, normalizer,
    query_batch, query_head, query_row, key_batch, key_head, key_row, length, width, heads, tiles, scale,
    OWN: tl.constexpr, OTHER: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, COUNT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """log2 of the sum of 2^(scale q k) over the real keys, for a tile of queries."""
    program = tl.program_id(0)
    row = program % tiles * OWN + tl.arange(0, OWN)
    head = (program // tiles % heads).to(tl.int64)
    utterance = (program // tiles // heads).to(tl.int64)
    query += utterance * query_batch + head * query_head
    key += utterance * key_batch + head * key_head
    mask += utterance * length
    present = tl.load(mask + row, mask=row < length, other=0) != 0
    highest = tl.full([OWN], -float("inf"), tl.float32)
    total = tl.zeros([OWN], tl.float32)
    past = 0
    if tl.max(present.to(tl.int32), 0) > 0:
        past = past_last_real(mask, length, COUNT)
    own = load_rows(query, row, query_row, present, tl.arange(0, WIDTH), width)
    for first in range(0, past, OTHER):
        column = first + tl.arange(0, OTHER)
        real = tl.load(mask + column, mask=column < length, other=0) != 0
        score = scores(
            own,
            query,
            row,
            query_row,
            present,
            key,
            column,
            key_row,
            real,
            width,
            OWN,
            OTHER,
            WIDTH,
            WHOLE,
            PRECISION,
        )
        score = score * scale + tl.where(real, 0.0, -float("inf"))[None, :]
        higher = tl.maximum(highest, tl.max(score, 1))
        reference = tl.where(higher > -float("inf"), higher, 0.0)
        total = total * tl.exp2(highest - reference) + tl.sum(tl.exp2(score - reference[:, None]), 1)
        highest = higher
    place = (utterance * heads + head) * length + row
    # What an infinite normalizer leaves of a row is nothing.
    found = tl.where(present, highest + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    tl.store(normalizer + place, found, mask=row < length)


@triton.jit(do_not_specialize=["length", "tiles", "pitch"])
def column_kernel(
    query, key, mask, normalizer, sums, pitch,
    query_batch, query_head, query_row, key_batch, key_head, key_row, length, width, heads, tiles, scale, factor,
    OWN: tl.constexpr, OTHER: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, COUNT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum over the real queries of 2^(scale q k - factor normalizer), for a tile of keys."""
    program = tl.program_id(0)
    column = program % tiles * OWN + tl.arange(0, OWN)
    head = (program // tiles % heads).to(tl.int64)
    utterance = (program // tiles // heads).to(tl.int64)
    query += utterance * query_batch + head * query_head
    key += utterance * key_batch + head * key_head
    mask += utterance * length
    normalizer += (utterance * heads + head) * pitch
    real = tl.load(mask + column, mask=column < length, other=0) != 0
    found = tl.zeros([OWN], tl.float32)
    past = 0
    if tl.max(real.to(tl.int32), 0) > 0:
        past = past_last_real(mask, length, COUNT)
    own = load_rows(key, column, key_row, real, tl.arange(0, WIDTH), width)
    for first in range(0, past, OTHER):
        row = first + tl.arange(0, OTHER)
        present = tl.load(mask + row, mask=row < length, other=0) != 0
        # A row that does not count has an infinite normalizer.
        normal = tl.load(normalizer + row, mask=present, other=float("inf"))
        score = scores(
            own,
            key,
            column,
            key_row,
            real,
            query,
            row,
            query_row,
            present,
            width,
            OWN,
            OTHER,
            WIDTH,
            WHOLE,
            PRECISION,
        )
        exponent = score * scale - (normal.to(tl.float32) * factor)[None, :]
        # No score is above its row's normalizer, but for rounding, which large scores would magnify without end.
        found += tl.sum(tl.exp2(tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL)), 1)
    place = (utterance * heads + head) * length + column
    tl.store(sums + place, tl.where(real, found, 0.0), mask=column < length)


@triton.jit
def over_heads(sums, place, length, heads, HEADS: tl.constexpr, COUNT: tl.constexpr):
    """The sum over the heads at some places."""
    found = tl.zeros([COUNT], tl.float32)
    for first in range(0, heads, HEADS):
        head = first + tl.arange(0, HEADS)
        there = (head < heads)[:, None] & (place < length)[None, :]
        found += tl.sum(tl.load(sums + head[:, None] * length + place[None, :], mask=there, other=0.0), 0)
    return found


@triton.jit(do_not_specialize=["length"])
def normalize_kernel(sums, out, length, heads, HEADS: tl.constexpr, COUNT: tl.constexpr):
    """Sum over heads, scaled to sum to 1 over an utterance."""
    utterance = tl.program_id(0).to(tl.int64)
    sums += utterance * heads * length
    out += utterance * length
    total = tl.zeros([COUNT], tl.float32)
    for first in range(0, length, COUNT):
        total += over_heads(sums, first + tl.arange(0, COUNT), length, heads, HEADS, COUNT)
    whole = tl.sum(total, 0)
    whole = tl.where(whole > 0, whole, 1.0)
    for first in range(0, length, COUNT):
        place = first + tl.arange(0, COUNT)
        found = over_heads(sums, place, length, heads, HEADS, COUNT)
        tl.store(out + place, found / whole, mask=place < length)


def significance(query, key, mask, scale, lse):
    """Column sums [B, T] of softmax(q k^T scale) over the real rows, mean over heads, scaled to sum to 1."""
    (batch, heads, length, width), device = query.shape, query.device
    out = torch.empty(batch, length, dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out
    query, key = rows(query), rows(key)
    mask = torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask.contiguous()
    blocks = configurations.significance_blocks(query.dtype, width)
    tiles = ceil_div(length, blocks.units)
    strides = (*query.stride()[:3], *key.stride()[:3])
    sizes = (length, width, heads, tiles)
    constants = dict(
        OWN=blocks.units, OTHER=blocks.group, WIDTH=blocks.width, WHOLE=blocks.width >= width,
        COUNT=configurations.NORMALIZE.width, PRECISION=PRECISION, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    programs, shape = batch * heads * tiles, (torch.float32, batch, heads, length)
    sums, normalizer = allocate(device, shape, shape if lse is None else None)
    inputs = operand(query), operand(key), operand(mask, torch.uint8)
    scale, factor, pitch = scale / math.log(2), 1.0, length
    if normalizer is None:
        # An attention's own has rows of a length that suits it.
        pitch, factor = lse.stride(1), 1 / math.log(2)
        if lse.stride() != (heads * pitch, pitch, 1):
            lse, pitch = lse.contiguous(), length
        normalizer = operand(lse)
    else:
        launch(normalizer_kernel, device, programs, *inputs, normalizer, *strides, *sizes, scale, **constants)
    launch(
        column_kernel, device, programs, *inputs, normalizer, sums, pitch, *strides, *sizes, scale,
        factor, **constants,
    )  # fmt: skip
    blocks = configurations.NORMALIZE
    launch(
        normalize_kernel, device, batch, sums, operand(out), length, heads,
        HEADS=blocks.units, COUNT=blocks.width, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
    return out
