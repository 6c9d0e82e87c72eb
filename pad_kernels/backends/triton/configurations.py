"""Every block size that a kernel can run with, and the pure functions that choose among them.

Nothing is tuned at run time: the choice depends on sizes and dtype alone, so that a run never stalls and the
same inputs give the same bits. Every entry is compiled offline by tests/triton_offline.py.
"""

from typing import NamedTuple

import torch

# Two programs for each multiprocessor of a large GPU: work is split until about that many run.
PROGRAMS = 264
MAX_TEXT_PARTS = 8


class Blocks(NamedTuple):
    """Sizes of a program's tile: `width` is a step through D, `group` the columns it accumulates (where a
    kernel has no such thing, what the comment at its table says)."""

    tokens: int
    units: int
    width: int
    warps: int
    stages: int
    group: int = 0


# By the bytes of an element and the largest number of tokens.
FORWARD = {
    2: {32: Blocks(32, 64, 64, 4, 3), 64: Blocks(64, 64, 64, 4, 3)},
    4: {32: Blocks(32, 32, 16, 4, 2), 64: Blocks(64, 64, 16, 4, 2)},
}
UNIT_GRADIENT = {
    2: {32: Blocks(32, 64, 32, 8, 3), 64: Blocks(64, 64, 32, 8, 3)},
    4: {32: Blocks(32, 64, 16, 8, 2), 64: Blocks(64, 64, 16, 8, 2)},
}
TEXT_GRADIENT = {
    2: {32: Blocks(32, 32, 32, 8, 2, 256), 64: Blocks(64, 32, 64, 8, 2, 128)},
    4: {32: Blocks(32, 16, 16, 8, 2, 256)},
}
# Kernels without a matrix product, or with a small one: one choice each.
MERGE = Blocks(32, 16, 0, 4, 1)
POOL = Blocks(0, 16, 128, 4, 2)
HARD = Blocks(1, 0, 1024, 4, 2)
GATHER = Blocks(0, 16, 64, 4, 1, 32)
SUM = Blocks(0, 0, 1024, 4, 1)
NORMALIZE = Blocks(0, 0, 1024, 4, 1)
# By the bytes of an element and the largest head width that a tile holds whole; None: in steps of `width`.
# A program owns `units` queries or keys, and the others pass in tiles of `group`.
SIGNIFICANCE = {
    2: {
        16: Blocks(0, 128, 16, 4, 3, 64),
        32: Blocks(0, 128, 32, 8, 3, 64),
        64: Blocks(0, 128, 64, 8, 3, 64),
        128: Blocks(0, 128, 128, 8, 2, 64),
        None: Blocks(0, 128, 64, 8, 2, 64),
    },
    4: {None: Blocks(0, 64, 16, 8, 2, 64)},
}


def by_tokens(table: dict, dtype: torch.dtype, tokens: int) -> Blocks:
    """The smallest tile that holds all tokens, or the largest there is."""
    choices = table[dtype.itemsize]
    return choices[min((size for size in choices if size >= tokens), default=max(choices))]


def significance_blocks(dtype: torch.dtype, width: int) -> Blocks:
    """The tile that holds a head of `width` columns whole, or the one that steps through it."""
    choices = SIGNIFICANCE[dtype.itemsize]
    return choices[min((size for size in choices if size and size >= width), default=None)]


def text_parts(batch: int, tokens: int, width: int, units: int, blocks: Blocks) -> int:
    """In how many parts the units are split for the gradient of the text."""
    programs = batch * ceil_div(tokens, blocks.tokens) * ceil_div(width, blocks.group)
    tiles = ceil_div(units, blocks.units)
    return max(1, min(ceil_div(PROGRAMS, programs), tiles, MAX_TEXT_PARTS))


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)
