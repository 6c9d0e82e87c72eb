"""Every op in plain PyTorch: the definition that the other backends are held against.

Runs on any device, in float32 (float64 for float64 inputs). `alignment` is differentiable by autograd; the
functions named as the ops have the ops' signatures. What takes no part is replaced by zeros before it is
used: a NaN there reaches neither value nor gradient.
"""

import functools

import torch
from torch import Tensor

from pad_kernels.inputs import accumulator

EPS = 1e-8
SIGNIFICANCE_ROWS = 256


def _in_full_precision(function):
    """Inside autocast the matrix products of `function` would run in half precision."""

    @functools.wraps(function)
    def wrapped(first, *rest):
        if not torch.is_autocast_enabled(first.device.type):
            return function(first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest)

    return wrapped


def _select(values: Tensor, taking_part: Tensor) -> Tensor:
    """`values` [B, L, D] in the accumulator dtype, zeros where `taking_part` [B, L] is False."""
    return torch.where(taking_part[..., None], values, 0).to(accumulator(values.dtype))


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp(min=EPS)


def _pool_spans(speech, frame_prior, start, end):
    """Units sum p s / sum p [B, U, D] of the spans, priors mean p [B, U], and weights p / sum p [B, U, M]."""
    frame = torch.arange(speech.shape[1], device=speech.device)
    inside = (frame >= start[..., None]) & (frame < end[..., None])
    real = inside & (frame_prior >= 0)[:, None, :]  # below 0: masked
    weights = real * frame_prior[:, None, :]
    total = weights.sum(2)
    weights = weights / torch.where(total > 0, total, 1)[..., None]
    return weights @ speech, total / real.sum(2).clamp(min=1), weights


def _units(speech, frame_prior, start, end):
    speech = _select(speech, frame_prior > 0)
    return (speech, frame_prior, None) if start is None else _pool_spans(speech, frame_prior, start, end)


def _logits(cosine, prior, taking_part, temperature):
    """phi / tau + log prior [B, N, U]; zeros in rows that take no part, so that softmax is defined."""
    logits = (cosine / temperature if temperature > 0 else cosine) + prior.log()[:, None, :]
    if temperature == 0:
        logits = torch.where(prior[:, None, :] > 0, cosine, -torch.inf)
    return torch.where(taking_part[..., None], logits, 0)


def _cosine(tokens: Tensor, units: Tensor) -> Tensor:
    """phi [B, N, U] of unit vectors."""
    if tokens.shape[1] != 1:
        return tokens @ units.mT
    # A product with a single vector rounds by the place of a row: equal units would not tie.
    return (tokens.expand(-1, 2, -1) @ units.mT)[:, :1]


def _taking_part(token_mask: Tensor, unit_prior: Tensor) -> Tensor:
    return token_mask & (unit_prior > 0).any(1, keepdim=True)


def alignment_matrix(speech, text, frame_prior, token_mask, start, end, temperature) -> Tensor:
    """A [B, N, U]: the posterior of each unit (soft), or one at the best unit (hard)."""
    units, unit_prior, _ = _units(speech, frame_prior, start, end)
    text = _select(text, token_mask)
    taking_part = _taking_part(token_mask, unit_prior)
    if unit_prior.shape[1] == 0:
        return text.new_zeros(*token_mask.shape, 0)
    cosine = _cosine(text / _norm(text), units / _norm(units))
    logits = _logits(cosine, unit_prior, taking_part, temperature)
    if temperature > 0:
        return torch.where(taking_part[..., None], logits.softmax(2), 0)
    best = torch.zeros_like(logits).scatter(2, logits.argmax(2, keepdim=True), 1)
    return best * taking_part[..., None]


def alignment(speech, text, frame_prior, token_mask, start, end, temperature):
    """Similarity, best unit and log-normaliser of each token, [B, N] each; differentiable by autograd."""
    units, unit_prior, _ = _units(speech, frame_prior, start, end)
    text = _select(text, token_mask)
    taking_part = _taking_part(token_mask, unit_prior)
    if unit_prior.shape[1] == 0:
        nothing = text.sum(2) * 0
        return nothing, torch.full_like(nothing, -1, dtype=torch.int64), torch.zeros_like(nothing)
    cosine = _cosine(text / _norm(text), units / _norm(units))
    logits = _logits(cosine, unit_prior, taking_part, temperature)
    unit = logits.argmax(2)
    if temperature > 0:
        similarity = (logits.softmax(2) * cosine).sum(2)
        log_normalizer = torch.where(taking_part, logits.logsumexp(2), 0)
    else:
        similarity = cosine.gather(2, unit[..., None]).squeeze(2)
        log_normalizer = torch.zeros_like(similarity)
    return torch.where(taking_part, similarity, 0), torch.where(taking_part, unit, -1), log_normalizer


@_in_full_precision
def alignment_forward(speech, text, frame_prior, token_mask, start, end, temperature):
    """`alignment` as the op calls it."""
    with torch.no_grad():
        return alignment(speech, text, frame_prior, token_mask, start, end, temperature)


def _reduce(distance, counts, reduction):
    """The loss of distances [B] of the utterances that count, and what each contributes to it of its own."""
    distance = torch.where(counts, distance, 0)
    if reduction == "none":
        return distance, 1.0
    share = counts.sum().clamp(min=1).to(distance.dtype).reciprocal() if reduction == "mean" else 1.0
    return distance.sum() * share, share


def token_loss(similarity, unit, weights, reduction):
    """sum_j q_j (1 - similarity_j), reduced over the utterances in which a token has a unit, and their share."""
    return _reduce((weights * (1 - similarity)).sum(1), (unit >= 0).any(1), reduction)


def pooled_loss(distance, totals, reduction):
    """The distances [B] of pooled rows, reduced over the utterances with weights on both sides, and their share."""
    return _reduce(distance, (totals > 0).all(1), reduction)


def _through_norm(grad_direction, direction, norm):
    """The gradient of v from that of v / max(|v|, eps); below eps the denominator is a constant."""
    along = (grad_direction * direction).sum(-1, keepdim=True)
    return (grad_direction - torch.where(norm > EPS, direction * along, 0)) / norm


@_in_full_precision
def alignment_backward(
    grad_similarity, speech, text, frame_prior, token_mask, start, end, temperature,
    similarity, unit, log_normalizer, need_speech, need_text,
):  # fmt: skip
    """Gradients of speech and text, each empty unless needed.

    d similarity_j / d phi_jk = A_jk (1 + (phi_jk - similarity_j) / tau), or one at the best unit for tau = 0.
    """
    grad_speech, grad_text = speech.new_empty(0), text.new_empty(0)
    units, unit_prior, weights = _units(speech, frame_prior, start, end)
    tokens = _select(text, token_mask)
    unit_norm, token_norm = _norm(units), _norm(tokens)
    units, tokens = units / unit_norm, tokens / token_norm
    taking_part = unit >= 0
    if unit_prior.shape[1] == 0:
        grad_cosine = tokens.new_zeros(*unit.shape, 0)
    elif temperature > 0:
        cosine = _cosine(tokens, units)
        posterior = _logits(cosine, unit_prior, taking_part, temperature).softmax(2)
        grad_cosine = posterior * (1 + (cosine - similarity[..., None]) / temperature)
    else:
        grad_cosine = tokens.new_zeros(*unit.shape, unit_prior.shape[1])
        grad_cosine.scatter_(2, unit.clamp(min=0)[..., None], 1)
    grad_cosine = torch.where(taking_part[..., None], grad_similarity[..., None] * grad_cosine, 0)
    if need_text:
        grad = _through_norm(grad_cosine @ units, tokens, token_norm)
        grad_text = torch.where(token_mask[..., None], grad, 0).to(text.dtype).contiguous()
    if need_speech:
        grad = _through_norm(grad_cosine.mT @ tokens, units, unit_norm)
        grad = grad if weights is None else weights.mT @ grad
        grad_speech = torch.where((frame_prior > 0)[..., None], grad, 0).to(speech.dtype).contiguous()
    return grad_speech, grad_text


@_in_full_precision
def significance(query, key, mask, scale, lse):
    """Column sums [B, T] of softmax(q k^T scale) over the real rows, mean over heads, scaled to sum to 1."""
    batch, heads, length, _ = query.shape
    dtype = accumulator(query.dtype)
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=query.device)
    rows = mask[:, None, :, None]
    query, key = (torch.where(rows, x.detach(), 0).to(dtype) for x in (query, key))
    column_sums = torch.zeros(batch, length, dtype=dtype, device=query.device)
    for first in range(0, length, SIGNIFICANCE_ROWS):
        block = slice(first, first + SIGNIFICANCE_ROWS)
        real = rows[:, :, block]
        scores = (query[:, :, block] @ key.mT * scale).masked_fill(~mask[:, None, None, :], -torch.inf)
        # A row without any real key would be a softmax over nothing.
        scores = torch.where(real, scores, 0)
        if lse is None:
            attention = scores.softmax(3)
        else:
            attention = (scores - torch.where(real[..., 0], lse[:, :, block], 0)[..., None].to(dtype)).exp()
        column_sums += torch.where(real, attention, 0).sum((1, 2)) / heads
    total = column_sums.sum(1, keepdim=True)
    return column_sums / torch.where(total > 0, total, 1)


def _anchors(frame_prior, frame_mask, count, max_anchors, xi, anchors):
    """Anchor frames [B, max_anchors] in order of time, the number of frames M where there is none."""
    frames = frame_prior.shape[1]
    place = torch.arange(max_anchors, device=frame_prior.device)
    wanted = place < count[:, None]
    prior = torch.where(frame_mask, frame_prior, 0)
    if anchors == "stride":
        real_first = (~frame_mask).to(torch.uint8).argsort(dim=1, stable=True)
        rank = (2 * place + 1) * frame_mask.sum(1, keepdim=True) // (2 * count[:, None]).clamp(min=1)
        chosen = real_first.gather(1, rank.clamp(max=frames - 1))
    elif anchors == "topk":
        order = prior.argsort(dim=1, descending=True, stable=True)
        chosen = order.gather(1, place.clamp(max=frames - 1).expand(len(prior), -1))
        wanted = wanted & (place < (prior > 0).sum(1, keepdim=True))
    else:
        frame = torch.arange(frames, device=prior.device)
        chosen = torch.zeros(len(prior), max_anchors, dtype=torch.int64, device=prior.device)
        found = torch.zeros_like(wanted)
        for k in range(max_anchors):
            highest, best = prior.max(1, keepdim=True)
            chosen[:, k : k + 1], found[:, k : k + 1] = best, highest > 0
            distance = (frame - best).abs()
            prior = torch.where((distance < xi[:, None] / 2) | (distance == 0), 0, prior)
        wanted = wanted & found
    return torch.where(wanted, chosen, frames).sort(1).values


def select_spans(frame_prior, frame_mask, num_tokens, num_anchors, max_anchors, scales, xi, anchors):
    """Start and end [B, max_anchors * len(scales)] int32 of the spans around each anchor frame."""
    batch, frames = frame_prior.shape
    if batch == 0 or frames == 0 or max_anchors == 0:
        empty = torch.zeros(batch, max_anchors * len(scales), dtype=torch.int32, device=frame_prior.device)
        return empty, empty.clone()
    real = frame_mask.sum(1)
    count = torch.where((real > 0) & (num_tokens > 0), num_anchors.clamp(0, max_anchors), 0)
    if xi is None:
        xi = real.double() / num_tokens.clamp(min=1).double()
    anchor = _anchors(frame_prior, frame_mask, count, max_anchors, xi, anchors)[..., None]
    # A width beyond twice the frames covers them all.
    width = torch.stack([(scale * xi + 0.5).floor() for scale in scales], 1).clamp(1, 2 * frames + 1)
    width = width.long()[:, None, :]
    first = frame_mask.to(torch.uint8).argmax(1)[:, None, None]
    past = frames - frame_mask.flip(1).to(torch.uint8).argmax(1)[:, None, None]
    low = anchor - width // 2
    bounds = (bound.clamp(first, past).where(anchor < frames, 0) for bound in (low, low + width))
    start, end = (bound.to(torch.int32).flatten(1) for bound in bounds)
    return start, end


def _over_total(weights: Tensor, total: Tensor) -> Tensor:
    """Weights [B, L] over their sum [B]; where it is 0 they stay 0."""
    return weights / torch.where(total == 0, 1, total)[:, None]


@_in_full_precision
def pooled_distance_forward(speech, text, frame_weights, token_weights):
    """sum_d |sum_i p_i s_id - sum_j q_j t_jd| [B], the differences [B, D], and the sums of the weights [B, 2].

    p and q are the weights over their sum; rows of weight 0 take no part. Zeros where a sum is 0.
    """
    totals = torch.stack((frame_weights.sum(1), token_weights.sum(1)), 1)
    pooled_speech, pooled_text = (
        (_over_total(weights, total)[:, None, :] @ _select(values, weights != 0)).squeeze(1)
        for values, weights, total in ((speech, frame_weights, totals[:, 0]), (text, token_weights, totals[:, 1]))
    )
    difference = torch.where((totals == 0).any(1, keepdim=True), 0, pooled_speech - pooled_text)
    return difference.abs().sum(1), difference, totals


def pooled_distance_backward(
    grad, difference, totals, frame_weights, token_weights, dtype, need_speech, need_text
):  # fmt: skip
    """Gradients p_i sign(difference) grad of speech and -q_j sign(difference) grad of text in `dtype`."""
    grad = grad[:, None]
    grad_pooled = torch.where(difference > 0, grad, torch.where(difference < 0, -grad, difference))  # keeps a NaN

    def spread(grad_pooled, weights, total):
        grad_values = _over_total(weights, total)[..., None] * grad_pooled[:, None, :]
        return torch.where((weights != 0)[..., None], grad_values, 0).to(dtype)

    empty = grad.new_empty(0, dtype=dtype)
    return (
        spread(grad_pooled, frame_weights, totals[:, 0]) if need_speech else empty,
        spread(-grad_pooled, token_weights, totals[:, 1]) if need_text else empty.clone(),
    )
