"""Backward of the hard alignment: a token's gradient needs its unit alone, and a unit's the tokens that chose it."""

import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    STRIDES_AND_SIZES,
    direction_weight,
    eights,
    launch,
    narrowed,
    strides_in_eights,
)
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.memory import operand
from pad_kernels.backends.triton.token_gradients import token_gradients


@triton.jit
def next_with(unit, chosen, after, tokens, TOKENS: tl.constexpr):
    """The first token after `after` that has chosen the same unit, or the number of tokens."""
    found = tokens
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        same = tl.load(unit + token, mask=token < tokens, other=-1) == chosen
        found = tl.minimum(found, tl.min(tl.where(same & (token > after), token, tokens), 0))
    return found


@triton.jit
def is_chosen(unit, row, tokens, TOKENS: tl.constexpr):
    """Whether some token has chosen each of the units `row`."""
    found = row < 0
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        chosen = tl.load(unit + token, mask=token < tokens, other=-1).to(tl.int32)
        found |= tl.max((row[:, None] == chosen[None, :]).to(tl.int32), 1) > 0
    return found


@triton.jit(do_not_specialize=[*STRIDES_AND_SIZES, "upstream_stride", "share"])
def hard_kernel(
    given, upstream, upstream_stride, grad_scale, token_weights,
    units, remainder, text, unit_inverse, text_inverse, similarity, unit, inverse_total, grad_text, grad_units,
    unit_batch, unit_row, text_batch, text_row, unit_count, tokens, width, share,
    TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A token: g (unit / |unit| - similarity text / |text|) / |text|; and where it is the first to choose its unit, the
    gradient of that unit, summed over the tokens in order, with spans over the sum of their weights. Zeros for what
    nobody chose of its `share` of the units."""
    unit_batch, unit_row, text_batch, text_row = strides_in_eights(unit_batch, unit_row, text_batch, text_row)
    width = eights(width)
    program = tl.program_id(0)
    token = program % tokens
    utterance = (program // tokens).to(tl.int64)
    units += utterance * unit_batch
    text += utterance * text_batch
    unit += utterance * tokens
    if grad_units is not None:
        past = tl.minimum((token + 1) * share, unit_count)
        for first_row in range(token * share, past, UNITS):
            row = first_row + tl.arange(0, UNITS)
            free = tl.where(is_chosen(unit, row, tokens, TOKENS), past, row) < past
            for first in range(0, width, WIDTH):
                column = first + tl.arange(0, WIDTH)
                place = (utterance * unit_count + row)[:, None] * width + column[None, :]
                tl.store(grad_units + place, tl.zeros([UNITS, WIDTH], grad_units.dtype.element_ty),
                         mask=free[:, None] & (column < width)[None, :])  # fmt: skip
    chosen = tl.load(unit + token)
    valid = chosen >= 0
    grad = token_gradients(given, upstream, upstream_stride, grad_scale, token_weights, utterance, token, tokens, valid)
    cosine = tl.load(similarity + utterance * tokens + token, mask=valid, other=0.0)
    of_unit = tl.load(unit_inverse + utterance * unit_count + chosen, mask=valid, other=0.0)
    of_text = tl.load(text_inverse + utterance * tokens + token, mask=valid, other=0.0)
    first_to_choose = valid & (next_with(unit, chosen, -1, tokens, TOKENS) == token)
    # Not a mask of columns & valid: some interpreters make an integer of that, as `valid` is no tensor there.
    read = eights(tl.where(valid, width, 0))
    for first in range(0, width, WIDTH):
        column = first + tl.arange(0, WIDTH)
        inside = column < width
        own = tl.load(units + chosen * unit_row + column, mask=column < read, other=0.0).to(tl.float32)
        if remainder is not None:
            below = remainder + utterance * unit_batch + chosen * unit_row + column
            own += tl.load(below, mask=column < read, other=0.0).to(tl.float32)
        if grad_text is not None:
            part = tl.load(text + token.to(tl.int64) * text_row + column, mask=column < read, other=0.0)
            found = own * (of_unit * of_text) - part.to(tl.float32) * (cosine * direction_weight(of_text))
            place = (utterance * tokens + token) * width + column
            tl.store(grad_text + place, narrowed(found * grad, grad_text.dtype.element_ty), mask=inside)
        if grad_units is not None:
            if first_to_choose:
                found = tl.zeros([WIDTH], tl.float32)
                along = 0.0
                other = token
                while other < tokens:
                    other_grad = token_gradients(
                        given, upstream, upstream_stride, grad_scale, token_weights, utterance, other, tokens, True
                    )
                    part = tl.load(text + other.to(tl.int64) * text_row + column, mask=inside, other=0.0)
                    at = utterance * tokens + other
                    found += part.to(tl.float32) * (other_grad * tl.load(text_inverse + at))
                    along += other_grad * tl.load(similarity + at)
                    other = next_with(unit, chosen, other, tokens, TOKENS)
                found = found * of_unit - own * (along * direction_weight(of_unit))
                if inverse_total is not None:
                    found *= tl.load(inverse_total + utterance * unit_count + chosen)
                place = (utterance * unit_count + chosen) * width + column
                tl.store(grad_units + place, narrowed(found, grad_units.dtype.element_ty), mask=inside)


def fill_hard(grad, sides, scored, saved, grad_text, grad_units):
    """Fill the gradients of the text and of all units; either may be None."""
    text, count = sides.text, sides.units
    batch, tokens, width = text.shape
    blocks = configurations.HARD
    launch(
        hard_kernel, text.device, batch * tokens, *grad, scored.units, scored.remainder, operand(text),
        scored.unit_inverse, scored.text_inverse, saved.similarity, saved.unit, scored.inverse_total, grad_text,
        grad_units, *scored.strides, *text.stride()[:2], count, tokens, width, ceil_div(count, tokens),
        TOKENS=blocks.tokens, UNITS=blocks.units, WIDTH=blocks.width,
        warps=blocks.warps, stages=blocks.stages, registers=blocks.registers,
    )  # fmt: skip
