"""The norms of the tokens: found once, since every tile of units divides by them."""

import triton
import triton.language as tl
from torch import Tensor

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import eights, launch, load_rows, norm
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.memory import Buffer, operand


@triton.jit(do_not_specialize=["text_batch", "text_row", "tokens", "width", "first_program"])
def norm_kernel(
    text, text_inverse, text_batch, text_row, tokens, width, first_program,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """1 / the norm of each row of a tile; of the padding too, which nothing reads."""
    text_batch, text_row, width = eights(text_batch), eights(text_row), eights(width)
    program = tl.program_id(0) - first_program
    tiles = tl.cdiv(tokens, ROWS)
    utterance = (program // tiles).to(tl.int64)
    token = program % tiles * ROWS + tl.arange(0, ROWS)
    in_text = token < tokens
    squares = tl.zeros([ROWS, WIDTH], tl.float32)
    for step in range(0, width, WIDTH):
        column = step + tl.arange(0, WIDTH)
        part = load_rows(text + utterance * text_batch, token, text_row, in_text, column, width).to(tl.float32)
        squares += part * part
    tl.store(text_inverse + utterance * tokens + token, 1 / norm(tl.sum(squares, 1)), mask=in_text)


def programs(batch: int, tokens: int) -> int:
    """How many tiles of tokens there are."""
    return batch * ceil_div(tokens, configurations.NORM.tokens)


def find_norms(text: Tensor, text_inverse: Buffer):
    """Fill `text_inverse`, where no preparation does."""
    (batch, tokens, width), blocks = text.shape, configurations.NORM
    launch(
        norm_kernel, text.device, programs(batch, tokens), operand(text), text_inverse, *text.stride()[:2],
        tokens, width, 0, ROWS=blocks.tokens, WIDTH=blocks.width,
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip
