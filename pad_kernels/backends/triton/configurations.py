"""Every block size that a kernel can run with, and the pure functions that choose among them.

Nothing is tuned at run time: the choice depends on sizes and dtype alone, so that a run never stalls and the
same inputs give the same bits. Every entry is compiled offline by tests/triton_offline.py.
"""

from typing import NamedTuple

import torch


class Blocks(NamedTuple):
    """Sizes of a program's tile: `width` is a step through D, or the columns that a program owns; `group` is said
    at each table that has one. `registers`: that a thread may have, where the assembler left to itself would spill
    some so that more programs fit on the chip; 0: as it likes."""

    tokens: int
    units: int
    width: int
    warps: int
    stages: int
    group: int = 0
    registers: int = 0


# By the bytes of an element and the largest number of tokens.
SCORE = {
    2: {16: Blocks(16, 64, 64, 4, 4, registers=255), 32: Blocks(32, 64, 64, 4, 4), 64: Blocks(64, 64, 64, 4, 4)},
    4: {
        16: Blocks(16, 64, 16, 4, 5),
        32: Blocks(32, 64, 16, 4, 5, registers=128),
        64: Blocks(64, 64, 16, 4, 5, registers=168),
    },
}
# `width`: columns of a program; `group`: frames.
SPAN_SCORES = {
    2: {tokens: Blocks(tokens, 16, 256, 4, 3, 16, registers=168) for tokens in (16, 32, 64)},
    4: {tokens: Blocks(tokens, 16, 128, 4, 3, 16, registers=128) for tokens in (16, 32, 64)},
}
SPAN_PART = 32  # columns of a float32 product
UNIT_GRADIENT = {
    2: {16: Blocks(16, 64, 64, 4, 1), 32: Blocks(32, 64, 64, 4, 1), 64: Blocks(64, 64, 64, 4, 1)},
    4: {16: Blocks(16, 128, 64, 8, 1)},
}
TEXT_GRADIENT = {
    2: {16: Blocks(16, 64, 64, 2, 3), 32: Blocks(32, 64, 64, 4, 3), 64: Blocks(64, 128, 64, 4, 3)},
    4: {16: Blocks(16, 32, 64, 4, 3), 32: Blocks(32, 32, 64, 4, 3, registers=168)},
}
# Of spans, which are few: both gradients in one launch, with the warps of the larger choice.
UNIT_GRADIENT_SPANS = UNIT_GRADIENT | {4: {16: Blocks(16, 64, 64, 4, 1)}}
TEXT_GRADIENT_SPANS = {
    2: {16: Blocks(16, 64, 64, 2, 3), 32: Blocks(32, 64, 64, 4, 3), 64: Blocks(64, 128, 64, 4, 3)},
    4: {16: Blocks(16, 32, 64, 4, 3), 32: Blocks(32, 32, 64, 4, 3), 64: Blocks(64, 32, 32, 4, 3)},
}
# Rows of frames or tokens, `units`, for the global level.
POOL_ROWS = {2: Blocks(0, 64, 64, 4, 3, registers=168), 4: Blocks(0, 32, 64, 4, 3)}
# `tokens`: frames, `group`: steps of columns.
SPREAD = {2: Blocks(32, 16, 128, 4, 1, 3), 4: Blocks(32, 16, 64, 4, 1, 4)}
SCAN = 256
# `width`: frames that are held at once, by which one is chosen; of longer utterances the rest is read again for each
# step.
PREPARE = {1024: Blocks(256, 0, 1024, 4, 1, registers=168), 2048: Blocks(256, 0, 2048, 4, 1, registers=255)}
# Of the norms of the tokens, which programs of the preparation find: rows of a program.
NORM = Blocks(8, 0, 1024, 4, 1)
# Kernels without a matrix product: one choice each. `group`: utterances.
SOFT_WEIGHTS = Blocks(16, 64, 0, 4, 1, registers=168)
SOFT_WEIGHTS_SPANS = Blocks(32, 32, 0, 4, 1, registers=168)
MERGE = Blocks(64, 16, 0, 0, 0, 128)
HARD = Blocks(32, 8, 1024, 4, 1, registers=80)
POOL_DISTANCE = Blocks(0, 0, 1024, 0, 0, 64)
POOL_GRADIENT = Blocks(0, 16, 512, 4, 1)
# `units`: heads.
NORMALIZE = Blocks(0, 16, 256, 8, 1)
# By the bytes of an element and the largest head width that a tile holds whole; None: in steps of `width`.
# A program owns `units` queries or keys, and the others pass in tiles of `group`.
SIGNIFICANCE = {
    2: {
        16: Blocks(0, 128, 16, 4, 3, 64),
        32: Blocks(0, 128, 32, 8, 3, 64),
        64: Blocks(0, 128, 64, 4, 3, 64),
        128: Blocks(0, 128, 128, 8, 2, 64),
        None: Blocks(0, 128, 64, 8, 2, 64),
    },
    4: {64: Blocks(0, 64, 64, 4, 2, 32), None: Blocks(0, 64, 32, 8, 2, 64)},
}


def by_itemsize(table: dict, dtype: torch.dtype) -> Blocks:
    """The choice for elements of a dtype's size."""
    return table[dtype.itemsize]


def by_tokens(table: dict, dtype: torch.dtype, tokens: int) -> Blocks:
    """The smallest tile that holds all tokens, or the largest there is."""
    return _that_holds(table[dtype.itemsize], tokens)


def span_tiles(spans: int, dtype: torch.dtype, tokens: int) -> int:
    """Tiles of an utterance's spans."""
    return ceil_div(spans, by_tokens(SPAN_SCORES, dtype, tokens).units)


def prepare_blocks(frames: int) -> Blocks:
    """The smallest block that holds all frames, or the largest there is."""
    return _that_holds(PREPARE, frames)


def _that_holds(choices: dict, count: int) -> Blocks:
    return choices[min((size for size in choices if size >= count), default=max(choices))]


def significance_blocks(dtype: torch.dtype, width: int) -> Blocks:
    """The tile that holds a head of `width` columns whole, or the one that steps through it."""
    choices = SIGNIFICANCE[dtype.itemsize]
    return choices[min((size for size in choices if size and size >= width), default=None)]


def cosine_dtype(dtype: torch.dtype, temperature: float) -> torch.dtype:
    """How the cosines are kept for the backward pass: float16 where its rounding over the temperature is far
    below that of a gradient in half precision."""
    return torch.float16 if dtype.itemsize == 2 and temperature >= 0.05 else torch.float32


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def round_up(number: int, to: int) -> int:
    return ceil_div(number, to) * to
