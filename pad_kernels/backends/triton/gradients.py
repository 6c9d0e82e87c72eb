"""Backward of the alignment.

Soft: the weights of both gradients are found once from the cosines that the forward pass kept, then each gradient is
a product of weights and rows. Hard: hard_gradients.py. Where units are spans, a last kernel spreads the gradient of
the units to the frames.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import (
    PRECISION,
    STRIDES_AND_SIZES,
    add_product,
    direction_weight,
    eights,
    launch,
    load_rows,
    narrowed,
    product,
    strides_in_eights,
)
from pad_kernels.backends.triton.configurations import ceil_div, round_up
from pad_kernels.backends.triton.hard_gradients import fill_hard
from pad_kernels.backends.triton.memory import allocate, contiguous, empty, operand
from pad_kernels.backends.triton.scores import Scored, Sides, is_empty, score_alone, sides_of
from pad_kernels.backends.triton.spread import spread_to_frames
from pad_kernels.backends.triton.token_gradients import TokenGradient, token_gradients
from pad_kernels.inputs import AlignmentInputs, Gradients, Needed, Saved, gradient_temperature


@triton.jit
def largest_gradient(
    given, upstream, upstream_stride, grad_scale, token_weights, unit, utterance, tokens, TOKENS: tl.constexpr
):
    """max over the tokens of |gradient|, by which float16 weights are scaled; 1 where all are 0."""
    largest = tl.zeros([TOKENS], tl.float32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        valid = tl.load(unit + utterance * tokens + token, mask=token < tokens, other=-1) >= 0
        grad = token_gradients(
            given, upstream, upstream_stride, grad_scale, token_weights, utterance, token, tokens, valid
        )
        largest = tl.maximum(largest, tl.abs(grad))
    found = tl.max(largest, 0)
    return tl.where(found > 0, found, 1.0)


@triton.jit
def direction(rows, inverse):
    """Rows over their norms: float16 ones for a product whose weights would leave their range with the norms."""
    return (rows.to(tl.float32) * inverse[:, None]).to(tl.float16)


@triton.jit(do_not_specialize=["upstream_stride", "unit_count", "tokens", "unit_tiles"])
def soft_weights_kernel(
    given, upstream, upstream_stride, grad_scale, token_weights,
    cosine, unit_prior, unit_inverse, text_inverse, similarity, unit, log_normalizer,
    unit_grad_weights, text_grad_weights, unit_scale, unit_along, text_along,
    unit_count, tokens, unit_tiles, token_pitch, unit_pitch, inverse_temperature,
    TOKENS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A tile of units against all tokens, W = A (1 + (phi - similarity) / tau): the weights W g / |t| of the units'
    gradient and W / |u| of the text's (float16: without the norms), and what each has along its own direction."""
    program = tl.program_id(0)
    unit_tile = program % unit_tiles
    utterance = (program // unit_tiles).to(tl.int64)
    row = unit_tile * UNITS + tl.arange(0, UNITS)
    in_units = row < unit_count
    place = utterance * unit_count + row
    first_unit = utterance * unit_count + unit_tile * UNITS
    cosine += first_unit * token_pitch
    unit_grad_weights += first_unit * token_pitch
    lane = tl.arange(0, UNITS)
    text_lane = tl.arange(0, TOKENS)
    prior = tl.load(unit_prior + place, mask=in_units, other=0.0)
    valid_unit = prior > 0
    inverse = tl.where(valid_unit, tl.load(unit_inverse + place, mask=in_units, other=0.0), 0.0)
    kind: tl.constexpr = unit_grad_weights.dtype.element_ty
    largest = 1.0
    if kind == tl.float16:
        largest = largest_gradient(
            given, upstream, upstream_stride, grad_scale, token_weights, unit, utterance, tokens, TOKENS
        )
    along = tl.zeros([UNITS], tl.float32)
    aligned = tl.zeros([TOKENS], tl.int32)
    some = tl.max(valid_unit.to(tl.int32), 0) > 0
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        in_tile = token < tokens
        at = utterance * tokens + token
        at_text = text_grad_weights + (utterance * tokens + first) * unit_pitch
        at_text += text_lane[:, None] * unit_pitch + row[None, :]
        in_text = in_tile[:, None] & (row < unit_pitch)[None, :]
        at_along = text_along + (utterance * unit_tiles + unit_tile) * tokens + token
        if some:
            # All at once, without waiting for what says which of it counts; where nothing does it is not defined.
            valid = tl.load(unit + at, mask=in_tile, other=-1) >= 0
            grad = token_gradients(
                given, upstream, upstream_stride, grad_scale, token_weights, utterance, token, tokens, in_tile
            )
            mean = tl.load(similarity + at, mask=in_tile, other=0.0)
            normalizer = tl.load(log_normalizer + at, mask=in_tile, other=0.0)
            text_scale = tl.load(text_inverse + at, mask=in_tile, other=0.0)
            at_both = lane[:, None] * token_pitch + token[None, :]
            in_both = in_units[:, None] & (token < token_pitch)[None, :]
            phi = tl.load(cosine + at_both, mask=in_both, other=0.0).to(tl.float32)
            aligned = tl.maximum(aligned, valid.to(tl.int32))
            grad, text_scale = tl.where(valid, grad, 0.0), tl.where(valid, text_scale, 0.0)
            both = valid_unit[:, None] & valid[None, :]
            phi = tl.where(both, phi, 0.0)
            logit = phi * inverse_temperature + tl.log(tl.where(valid_unit, prior, 1.0))[:, None]
            posterior = tl.exp(logit - normalizer[None, :])
            found = tl.where(both, posterior * (1 + (phi - mean[None, :]) * inverse_temperature), 0.0)
            # What lies along a row is that of the rounded weights, so that it cancels where unit and token are nearly
            # parallel.
            if kind == tl.float16:
                of_unit = narrowed(found * (grad / largest)[None, :], kind)
                along += tl.sum(of_unit.to(tl.float32) * phi, 1) * largest
            else:
                of_unit = narrowed(found * (grad * text_scale)[None, :], kind)
                text_norm = tl.where(text_scale > 0, 1 / text_scale, 0.0)
                along += tl.sum(of_unit.to(tl.float32) * phi * text_norm[None, :], 1)
            tl.store(unit_grad_weights + at_both, of_unit, mask=in_both)
            if kind == tl.float16:
                of_text = narrowed(found, kind)
                tl.store(at_along, tl.sum(of_text.to(tl.float32) * phi, 0), mask=in_tile)
            else:
                of_text = narrowed(found * inverse[:, None], kind)
                unit_norm = tl.where(inverse > 0, 1 / inverse, 0.0)
                tl.store(at_along, tl.sum(of_text.to(tl.float32) * phi * unit_norm[:, None], 0), mask=in_tile)
            tl.store(at_text, tl.trans(of_text), mask=in_text)
        else:
            tl.store(at_along, tl.zeros([TOKENS], tl.float32), mask=in_tile)
            tl.store(at_text, tl.zeros([TOKENS, UNITS], kind), mask=in_text)
    # Where there is no token no norm was found.
    inverse = tl.where(tl.max(aligned, 0) > 0, inverse, 0.0)
    tl.store(unit_scale + place, inverse * largest, mask=in_units)
    tl.store(unit_along + place, along * direction_weight(inverse), mask=in_units)


@triton.jit
def add_weighted(
    found, text_grad_weights, rows, unit_row, unit_prior, unit_inverse, valid, column, unit_count, width, unit_pitch,
    TOKENS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """found + the rows of an utterance's units at some columns, weighted for each token of a tile."""
    for first in range(0, unit_count, UNITS):
        row = first + tl.arange(0, UNITS)
        prior = tl.load(unit_prior + row, mask=row < unit_count, other=0.0)
        part = load_rows(rows, row, unit_row, prior > 0, column, width)
        pointers = text_grad_weights + tl.arange(0, TOKENS)[:, None] * unit_pitch + row[None, :]
        factor = tl.load(pointers, mask=valid[:, None] & (row < unit_pitch)[None, :], other=0.0)
        if part.dtype == tl.float16:
            part = direction(part, tl.load(unit_inverse + row, mask=prior > 0, other=0.0))
        found = add_product(factor, part, found, PRECISION)
    return found


@triton.jit(do_not_specialize=[*STRIDES_AND_SIZES, "upstream_stride", "along_tiles"])
def soft_text_kernel(
    given, upstream, upstream_stride, grad_scale, token_weights,
    units, remainder, text, unit_prior, unit_inverse, text_inverse, unit, text_grad_weights, text_along, grad_text,
    unit_batch, unit_row, text_batch, text_row,
    unit_count, tokens, width, along_tiles, unit_pitch,
    TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of tokens at a group of columns."""
    unit_batch, unit_row, text_batch, text_row = strides_in_eights(unit_batch, unit_row, text_batch, text_row)
    width = eights(width)
    steps, token_tiles = tl.cdiv(width, WIDTH), tl.cdiv(tokens, TOKENS)
    program = tl.program_id(0)
    step = program % steps
    first_token = program // steps % token_tiles * TOKENS
    lane = tl.arange(0, TOKENS)
    token = first_token + lane
    utterance = (program // steps // token_tiles).to(tl.int64)
    column = step * WIDTH + tl.arange(0, WIDTH)
    in_tile = token < tokens
    at = utterance * tokens + token
    text_grad_weights += (utterance * tokens + first_token) * unit_pitch
    valid = tl.load(unit + at, mask=in_tile, other=-1) >= 0
    found = tl.zeros([TOKENS, WIDTH], tl.float32)
    along = tl.zeros([TOKENS], tl.float32)
    if tl.max(valid.to(tl.int32), 0) > 0:
        found = add_weighted(
            found, text_grad_weights, units + utterance * unit_batch, unit_row, unit_prior + utterance * unit_count,
            unit_inverse + utterance * unit_count, valid, column, unit_count, width, unit_pitch,
            TOKENS, UNITS, PRECISION,
        )  # fmt: skip
        # In float16 dividing by the norms rounds as much.
        if remainder is not None and units.dtype.element_ty != tl.float16:
            found = add_weighted(
                found, text_grad_weights, remainder + utterance * unit_batch, unit_row,
                unit_prior + utterance * unit_count, unit_inverse + utterance * unit_count, valid, column, unit_count,
                width, unit_pitch,
                TOKENS, UNITS, PRECISION,
            )  # fmt: skip
        for tile in range(0, along_tiles):
            along += tl.load(text_along + (utterance * along_tiles + tile) * tokens + token, mask=valid, other=0.0)
    grad = token_gradients(given, upstream, upstream_stride, grad_scale, token_weights, utterance, token, tokens, valid)
    inverse = tl.load(text_inverse + at, mask=valid, other=0.0)
    own = load_rows(text + utterance * text_batch, token, text_row, valid, column, width).to(tl.float32)
    found = found * (grad * inverse)[:, None] - own * (grad * along * direction_weight(inverse))[:, None]
    found = tl.where(valid[:, None], found, 0.0)
    grad_text += (utterance * tokens + first_token) * width
    tl.store(grad_text + lane[:, None] * width + column[None, :], narrowed(found, grad_text.dtype.element_ty),
             mask=in_tile[:, None] & (column < width)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=[*STRIDES_AND_SIZES, "first_program"])
def soft_unit_kernel(
    units, remainder, text, unit_prior, text_inverse, unit, unit_grad_weights, unit_scale, unit_along, inverse_total,
    grad_units, unit_batch, unit_row, text_batch, text_row, unit_count, tokens, width, token_pitch, first_program,
    TOKENS: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of units at a group of columns, zero where a unit takes no part; that of spans divided by
    the sum of their weights, which their frames share."""
    unit_batch, unit_row, text_batch, text_row = strides_in_eights(unit_batch, unit_row, text_batch, text_row)
    width = eights(width)
    steps, unit_tiles = tl.cdiv(width, WIDTH), tl.cdiv(unit_count, UNITS)
    program = tl.program_id(0) - first_program
    step = program % steps
    unit_tile = program // steps % unit_tiles
    utterance = (program // steps // unit_tiles).to(tl.int64)
    column = step * WIDTH + tl.arange(0, WIDTH)
    lane = tl.arange(0, UNITS)
    row = unit_tile * UNITS + lane
    in_units = row < unit_count
    place = utterance * unit_count + row
    valid_unit = tl.load(unit_prior + place, mask=in_units, other=0.0) > 0
    first_unit = utterance * unit_count + unit_tile * UNITS
    unit_grad_weights += first_unit * token_pitch
    grad_units += utterance * unit_count * width
    found = tl.zeros([UNITS, WIDTH], tl.float32)
    if tl.max(valid_unit.to(tl.int32), 0) > 0:
        # Asked for now, so that it is there when the product is.
        own = load_rows(units + utterance * unit_batch, row, unit_row, valid_unit, column, width).to(tl.float32)
        if remainder is not None:
            below = load_rows(remainder + utterance * unit_batch, row, unit_row, valid_unit, column, width)
            own += below.to(tl.float32)
        for first in tl.range(0, tokens, TOKENS, num_stages=1):
            token = first + tl.arange(0, TOKENS)
            at = utterance * tokens + token
            valid = tl.load(unit + at, mask=token < tokens, other=-1) >= 0
            part = load_rows(text + utterance * text_batch, token, text_row, valid, column, width)
            pointers = unit_grad_weights + lane[:, None] * token_pitch + token[None, :]
            factor = tl.load(pointers, mask=valid_unit[:, None] & (token < token_pitch)[None, :], other=0.0)
            if part.dtype == tl.float16:
                part = direction(part, tl.load(text_inverse + at, mask=valid, other=0.0))
            found = product(factor, part, found, PRECISION)
        along = tl.load(unit_along + place, mask=valid_unit, other=0.0)
        scale = tl.load(unit_scale + place, mask=valid_unit, other=0.0)
        if inverse_total is not None:
            spread = tl.load(inverse_total + place, mask=valid_unit, other=0.0)
            along *= spread
            scale *= spread
        found = found * scale[:, None] - own * along[:, None]
        found = tl.where(valid_unit[:, None], found, 0.0)
    # 64 bits would cost registers, and with them half of the programs; an utterance has at most MOST_NUMBERS.
    tl.store(grad_units + row[:, None] * width + column[None, :], narrowed(found, grad_units.dtype.element_ty),
             mask=in_units[:, None] & (column < width)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=[*STRIDES_AND_SIZES, "upstream_stride", "along_tiles", "text_programs"])
def soft_gradients_kernel(
    given, upstream, upstream_stride, grad_scale, token_weights,
    units, remainder, text, unit_prior, unit_inverse, text_inverse, unit, inverse_total,
    unit_grad_weights, text_grad_weights, unit_scale, unit_along, text_along, grad_units, grad_text,
    unit_batch, unit_row, text_batch, text_row, unit_count, tokens, width,
    along_tiles, token_pitch, unit_pitch, text_programs,
    TEXT_TOKENS: tl.constexpr, TEXT_UNITS: tl.constexpr, TEXT_WIDTH: tl.constexpr,
    UNIT_TOKENS: tl.constexpr, UNIT_UNITS: tl.constexpr, UNIT_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both gradients in one launch: the first `text_programs` programs are those of the tokens."""
    if tl.program_id(0) < text_programs:
        soft_text_kernel(
            given, upstream, upstream_stride, grad_scale, token_weights,
            units, remainder, text, unit_prior, unit_inverse, text_inverse, unit, text_grad_weights, text_along,
            grad_text, unit_batch, unit_row, text_batch, text_row, unit_count, tokens, width, along_tiles, unit_pitch,
            TEXT_TOKENS, TEXT_UNITS, TEXT_WIDTH, PRECISION,
        )  # fmt: skip
    else:
        soft_unit_kernel(
            units, remainder, text, unit_prior, text_inverse, unit, unit_grad_weights, unit_scale, unit_along,
            inverse_total, grad_units, unit_batch, unit_row, text_batch, text_row, unit_count, tokens, width,
            token_pitch, text_programs, UNIT_TOKENS, UNIT_UNITS, UNIT_WIDTH, PRECISION,
        )  # fmt: skip


def gradients(grad, sides: Sides, scored: Scored, saved: Saved, temperature, needed: Needed) -> Gradients:
    """Gradients of speech and text, each empty unless needed. grad: a TokenGradient; saved: buffers."""
    speech, text, device = sides.speech, sides.text, sides.text.device
    temperature = gradient_temperature(temperature, text.dtype)

    def of(embeddings, is_needed):
        return empty(embeddings.shape if is_needed else (0,), text.dtype, device)

    spread = needed.speech and sides.start is not None
    grad_text = of(text, needed.text)
    if not any(needed):
        return of(speech, False), grad_text
    of_text = operand(grad_text) if needed.text else None
    if spread:
        # What is spread to frames is rounded once more: bfloat16 alone has the range for that.
        narrow = text.dtype if text.dtype == torch.bfloat16 else torch.float32
        (of_units,) = allocate(device, (narrow, speech.shape[0], sides.units, speech.shape[2]))
    else:
        grad_speech = of(speech, needed.speech)
        of_units = operand(grad_speech) if needed.speech else None
    if temperature == 0:
        fill_hard(grad, sides, scored, saved, of_text, of_units)
    else:
        fill_soft(grad, sides, scored, saved, temperature, of_text, of_units)
    if spread:
        grad_speech = of(speech, True)
        spread_to_frames(of_units, sides, grad_speech)
    return grad_speech, grad_text


def fill_soft(grad, sides, scored, saved, temperature, grad_text, grad_units):
    """Fill the gradients of the text and of all units; either may be None."""
    text, unit, count = sides.text, saved.unit, sides.units
    (batch, tokens, width), device = text.shape, text.device
    strides = (*scored.strides, *text.stride()[:2])
    of_spans = sides.start is not None
    blocks = configurations.SOFT_WEIGHTS_SPANS if of_spans else configurations.SOFT_WEIGHTS
    text_table = configurations.TEXT_GRADIENT_SPANS if of_spans else configurations.TEXT_GRADIENT
    unit_table = configurations.UNIT_GRADIENT_SPANS if of_spans else configurations.UNIT_GRADIENT
    along_tiles = ceil_div(count, blocks.units)
    token_pitch, unit_pitch = round_up(tokens, 16), round_up(count, 16)
    unit_grad_weights, text_grad_weights, unit_scale, unit_along, text_along = allocate(
        device, (text.dtype, batch, count, token_pitch), (text.dtype, batch, tokens, unit_pitch),
        (torch.float32, batch, count), (torch.float32, batch, count), (torch.float32, batch, along_tiles, tokens),
    )  # fmt: skip
    launch(
        soft_weights_kernel, device, batch * along_tiles, *grad, scored.cosine, scored.unit_prior, scored.unit_inverse,
        scored.text_inverse, *saved, unit_grad_weights, text_grad_weights, unit_scale, unit_along, text_along,
        count, tokens, along_tiles, token_pitch, unit_pitch, 1 / temperature,
        TOKENS=blocks.tokens, UNITS=blocks.units,
        warps=blocks.warps, stages=blocks.stages, registers=blocks.registers,
    )  # fmt: skip
    of_text = configurations.by_tokens(text_table, text.dtype, tokens)
    of_units = configurations.by_tokens(unit_table, text.dtype, tokens)
    text_programs = batch * ceil_div(tokens, of_text.tokens) * ceil_div(width, of_text.width)
    unit_programs = batch * ceil_div(count, of_units.units) * ceil_div(width, of_units.width)
    units, own = (scored.units, scored.remainder), operand(text)
    if grad_text is not None and grad_units is not None and of_spans:
        # Spans are few: one launch less is worth more than the shared memory that every program then holds.
        launch(
            soft_gradients_kernel, device, text_programs + unit_programs, *grad, *units, own, scored.unit_prior,
            scored.unit_inverse, scored.text_inverse, unit, scored.inverse_total, unit_grad_weights, text_grad_weights,
            unit_scale, unit_along, text_along, grad_units, grad_text, *strides, count, tokens, width,
            along_tiles, token_pitch, unit_pitch, text_programs,
            TEXT_TOKENS=of_text.tokens, TEXT_UNITS=of_text.units, TEXT_WIDTH=of_text.width,
            UNIT_TOKENS=of_units.tokens, UNIT_UNITS=of_units.units, UNIT_WIDTH=of_units.width, PRECISION=PRECISION,
            warps=max(of_text.warps, of_units.warps), stages=of_text.stages, registers=of_text.registers,
        )  # fmt: skip
        return
    if grad_text is not None:
        launch(
            soft_text_kernel, device, text_programs, *grad, *units, own, scored.unit_prior, scored.unit_inverse,
            scored.text_inverse, unit, text_grad_weights, text_along, grad_text, *strides, count, tokens, width,
            along_tiles, unit_pitch,
            TOKENS=of_text.tokens, UNITS=of_text.units, WIDTH=of_text.width, PRECISION=PRECISION,
            warps=of_text.warps, stages=of_text.stages, registers=of_text.registers,
        )  # fmt: skip
    if grad_units is not None:
        launch(
            soft_unit_kernel, device, unit_programs, *units, own, scored.unit_prior, scored.text_inverse, unit,
            unit_grad_weights, unit_scale, unit_along, scored.inverse_total, grad_units, *strides,
            count, tokens, width, token_pitch, 0,
            TOKENS=of_units.tokens, UNITS=of_units.units, WIDTH=of_units.width, PRECISION=PRECISION,
            warps=of_units.warps, stages=of_units.stages, registers=of_units.registers,
        )  # fmt: skip


def alignment_backward(grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed) -> Gradients:
    """Gradients of speech and text, each empty unless needed; the units are scored again."""
    if is_empty(inputs.speech, inputs.text, inputs.start):
        both = (inputs.speech, needed.speech), (inputs.text, needed.text)
        speech, text = (torch.zeros(x.shape if n else 0, dtype=x.dtype, device=x.device) for x, n in both)
        return speech, text
    sides, temperature = sides_of(inputs), inputs.temperature
    scored = score_alone(sides, temperature, None, differentiable=True)
    grad = TokenGradient(contiguous(grad_similarity.to(torch.float32)))
    aligned = Saved(*map(contiguous, saved))
    return gradients(grad, sides, scored, aligned, temperature, needed)
