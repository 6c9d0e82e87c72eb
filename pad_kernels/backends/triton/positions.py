"""The weights of an utterance's positions, from their masks and priors."""

import triton
import triton.language as tl

HIGHEST_BITS = tl.constexpr(0x7F800000)  # those of infinity; bits of numbers above 0 are in the order of the numbers


@triton.jit
def read_positions(mask, prior, utterance, place, length):
    """Mask and prior of positions; 1 for each where there is none, 0 outside."""
    inside = place < length
    flag = inside
    weight = tl.where(inside, 1.0, 0.0)
    if mask is not None:
        flag = tl.load(mask + utterance * length + place, mask=inside, other=0)
    if prior is not None:
        # Of the padding too, or it would wait for the mask.
        weight = tl.load(prior + utterance * length + place, mask=inside, other=0.0).to(tl.float32)
    return flag, weight


@triton.jit
def weighed(flag, weight):
    """Weight (0 where masked) of positions, and whether each is real."""
    real = flag != 0
    return tl.where(real & (weight > 0), weight, 0.0), real


@triton.jit
def position_weight(mask, prior, utterance, place, length):
    """`weighed` of what `read_positions` reads."""
    flag, weight = read_positions(mask, prior, utterance, place, length)
    return weighed(flag, weight)


@triton.jit
def scale_of(highest):
    """The power of two that brings very large or very small priors near 1, so that neither sums over them nor gradients
    divided by such sums leave the range; 1 for all others. highest: the bits of the highest."""
    exponent = (highest >> 23) - 127
    exponent = tl.where((exponent > 40) | (exponent < -40), exponent, 0)
    return (tl.maximum(127 - exponent, 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def count_frames(weight, real, mask, prior, utterance, frames, BLOCK: tl.constexpr):
    """How many frames are real and how many weigh something, the bits of the lowest of these weights and of the
    highest, the first real frame and the one past the last. weight, real: of the first block; others are read."""
    count = 0
    positive = 0
    lowest = HIGHEST_BITS
    highest = 0
    first, past = frames, 0
    for begin in range(0, frames, BLOCK):
        frame = begin + tl.arange(0, BLOCK)
        if begin > 0:
            weight, real = position_weight(mask, prior, utterance, frame, frames)
        # Two numbers below 2^16 in one sum: it is the reductions that a program waits for.
        bits = weight.to(tl.int32, bitcast=True)
        both = tl.sum(real.to(tl.int32) + ((bits > 0).to(tl.int32) << 16), 0)
        count += both & 0xFFFF
        positive += both >> 16
        lowest = tl.minimum(lowest, tl.min(tl.where(bits > 0, bits, HIGHEST_BITS), 0))
        highest = tl.maximum(highest, tl.max(bits, 0))
        first = tl.minimum(first, tl.min(tl.where(real, frame, frames), 0))
        past = tl.maximum(past, tl.max(tl.where(real, frame + 1, 0), 0))
    return count, positive, lowest, highest, first, past


@triton.jit
def store_frame_weights(
    out, weight, real, mask, prior, utterance, frames, factor, MASKED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The weights times the factor. weight, real: of the first block."""
    for begin in range(0, frames, BLOCK):
        frame = begin + tl.arange(0, BLOCK)
        if begin > 0:
            weight, real = position_weight(mask, prior, utterance, frame, frames)
        tl.store(out + utterance * frames + frame, tl.where(real, weight * factor, MASKED), mask=frame < frames)


@triton.jit
def store_token_weights(out, weight, real, mask, prior, utterance, tokens, BLOCK: tl.constexpr):
    """The prior over its sum; the number of real tokens. weight, real: of the first block."""
    count = 0
    total = 0.0
    held = weight
    for begin in range(0, tokens, BLOCK):
        if begin > 0:
            weight, real = position_weight(mask, prior, utterance, begin + tl.arange(0, BLOCK), tokens)
        total += tl.sum(weight, 0)
        count += tl.sum(real.to(tl.int32), 0)
    total = tl.where(total == 0, 1.0, total)
    for begin in range(0, tokens, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        if begin > 0:
            held, _ = position_weight(mask, prior, utterance, token, tokens)
        tl.store(out + utterance * tokens + token, held / total, mask=token < tokens)
    return count
