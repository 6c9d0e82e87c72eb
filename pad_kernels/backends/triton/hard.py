"""Backward of the hard alignment: only the unit that a token has chosen is read.

Each token finds the gradient of its unit, and the frames gather from the tokens whose unit covers them.
"""

import torch
import triton
import triton.language as tl

from pad_kernels.backends.triton import configurations
from pad_kernels.backends.triton.common import inverse_weight, launch, load_rows, load_span, norm, pool, span_weight
from pad_kernels.backends.triton.configurations import ceil_div
from pad_kernels.backends.triton.spread import spread_to_frames


@triton.jit
def unit_columns(speech, stride, frame_prior, start, first, length, weight, column, width):
    """Columns of the chosen units."""
    if start is None:
        return load_rows(speech, first, stride, weight > 0, column, width).to(tl.float32)
    else:
        return pool(speech, stride, frame_prior, first, length, inverse_weight(weight), column, width, STAGES=3)


@triton.jit(do_not_specialize=["frames", "tokens", "units", "token_tiles"])
def token_kernel(
    speech, text, frame_prior, start, end, grad_similarity, similarity, unit,
    grad_text, grad_unit, chosen_start, chosen_end, chosen_weight,
    speech_batch, speech_frame, text_batch, text_token, frames, tokens, units, width, token_tiles,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of tokens: the gradient of each, and of the unit it has chosen with that unit's span."""
    program = tl.program_id(0)
    token = program % token_tiles * TOKENS + tl.arange(0, TOKENS)
    utterance = (program // token_tiles).to(tl.int64)
    speech += utterance * speech_batch
    text += utterance * text_batch
    frame_prior += utterance * frames
    row = utterance * tokens + token
    in_tile = token < tokens
    chosen = tl.load(unit + row, mask=in_tile, other=-1).to(tl.int32)
    present = chosen >= 0
    chosen = tl.maximum(chosen, 0)
    cosine = tl.load(similarity + row, mask=present, other=0.0)
    grad = tl.load(grad_similarity + row, mask=present, other=0.0)
    if start is None:
        first = chosen
        length = present.to(tl.int32)
        weight = tl.load(frame_prior + first, mask=present, other=0.0)
    else:
        offset = utterance * units
        first, length = load_span(start + offset, end + offset, chosen, present, frames)
        weight, _ = span_weight(frame_prior, first, length)
    unit_squares = tl.zeros([TOKENS], tl.float32)
    token_squares = tl.zeros([TOKENS], tl.float32)
    for step in range(0, width, WIDTH):
        column = step + tl.arange(0, WIDTH)
        unit_part = unit_columns(speech, speech_frame, frame_prior, start, first, length, weight, column, width)
        text_part = load_rows(text, token, text_token, present, column, width).to(tl.float32)
        unit_squares += tl.sum(unit_part * unit_part, 1)
        token_squares += tl.sum(text_part * text_part, 1)
    unit_inverse, token_inverse = 1 / norm(unit_squares), 1 / norm(token_squares)
    unit_along = tl.where(unit_squares > 1e-16, cosine * unit_inverse, 0.0)
    token_along = tl.where(token_squares > 1e-16, cosine * token_inverse, 0.0)
    for step in range(0, width, WIDTH):
        column = step + tl.arange(0, WIDTH)
        unit_part = unit_columns(speech, speech_frame, frame_prior, start, first, length, weight, column, width)
        text_part = load_rows(text, token, text_token, present, column, width).to(tl.float32)
        place = row[:, None] * width + column[None, :]
        inside = in_tile[:, None] & (column < width)[None, :]
        if grad_text is not None:
            found = unit_part * unit_inverse[:, None] - text_part * token_along[:, None]
            found = found * (grad * token_inverse)[:, None]
            tl.store(grad_text + place, found.to(grad_text.dtype.element_ty), mask=inside)
        if grad_unit is not None:
            found = text_part * token_inverse[:, None] - unit_part * unit_along[:, None]
            tl.store(grad_unit + place, found * (grad * unit_inverse)[:, None], mask=inside)
    if grad_unit is not None:
        tl.store(chosen_start + row, first, mask=in_tile)
        tl.store(chosen_end + row, first + length, mask=in_tile)
        tl.store(chosen_weight + row, tl.where(present, weight, 0.0), mask=in_tile)


def hard_gradients(speech, text, frame_prior, start, end, saved, need_speech, need_text):
    """Gradients of speech and text, each empty unless needed; `saved` is the gradient and value of the
    similarity, and the units."""
    batch, frames, width = speech.shape
    tokens, units = text.shape[1], frames if start is None else start.shape[1]
    grad_speech, grad_text = speech.new_empty(0), text.new_empty(0)
    outputs = [None] * 5
    if need_text:
        outputs[0] = grad_text = torch.empty(batch, tokens, width, dtype=text.dtype, device=text.device)
    if need_speech:
        outputs[1] = torch.empty(batch, tokens, width, dtype=torch.float32, device=text.device)
        for i, dtype in ((2, torch.int32), (3, torch.int32), (4, torch.float32)):
            outputs[i] = torch.empty(batch, tokens, dtype=dtype, device=text.device)
    if need_speech or need_text:
        blocks = configurations.HARD
        token_tiles = ceil_div(tokens, blocks.tokens)
        launch(
            token_kernel, batch * token_tiles,
            speech, text, frame_prior, start, end, *saved, *outputs,
            *speech.stride()[:2], *text.stride()[:2], frames, tokens, units, width, token_tiles,
            TOKENS=blocks.tokens, WIDTH=blocks.width, warps=blocks.warps, stages=blocks.stages,
        )  # fmt: skip
    if need_speech:
        grad_unit, *spans, weight = outputs[1:]
        grad_speech = spread_to_frames(grad_unit, frame_prior, *spans, weight, speech.dtype)
    return grad_speech, grad_text
