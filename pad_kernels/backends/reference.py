"""Every op in plain PyTorch: the definition that the other backends are held against.

Runs on any device, in float32 (float64 for float64 inputs). `alignment` is differentiable by autograd. What takes no
part is replaced by zeros before it is used: a NaN there reaches neither value nor gradient.
"""

import torch
from torch import Tensor

from pad_kernels.backends.base import Backend
from pad_kernels.backends.full_precision import full_precision
from pad_kernels.backends.ties import first_equal_unit
from pad_kernels.inputs import (
    AlignmentInputs,
    Gradients,
    Needed,
    Pooled,
    PoolingInputs,
    Saved,
    SpanInputs,
    Temperature,
    gradient_temperature,
    opmath_dtype,
    widest_dtype,
)
from pad_kernels.weights import normalize

EPS = 1e-8
SIGNIFICANCE_ROWS = 256


def _select(values: Tensor, valid: Tensor) -> Tensor:
    """`values` [B, L, D] in the opmath dtype, zeros where `valid` [B, L] is False.

    Contiguous: matrix products round by the layout of what they are given.
    """
    return torch.where(valid[..., None], values, 0).to(opmath_dtype(values.dtype)).contiguous()


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return norm.clamp(min=EPS)


def pool_spans(speech: Tensor, frame_weights: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Units sum p s / sum p [B, U, D] of the spans, priors mean p [B, U], and shares p / sum p [B, U, M].

    p: the weights of the frames; their mean is what the softmax takes for the prior of a unit.
    """
    frame = torch.arange(speech.shape[1], device=speech.device)
    inside = (frame >= start[..., None]) & (frame < end[..., None])
    real = inside & (frame_weights >= 0)[:, None, :]  # below 0: masked
    shares = real * frame_weights[:, None, :]
    total = shares.sum(2)
    shares = shares / torch.where(total > 0, total, 1)[..., None]
    # 0 times a NaN is none: frames that no span has take no part.
    speech = speech.masked_fill(~real.any(1)[..., None], 0)
    return shares @ speech, total / real.sum(2).clamp(min=1), shares


def _units(inputs: AlignmentInputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Units [B, U, D], their priors [B, U], and for spans the shares of their frames [B, U, M]."""
    speech = _select(inputs.speech, inputs.frame_weights > 0)
    if inputs.start is None or inputs.end is None:
        return speech, inputs.frame_weights, None
    return pool_spans(speech, inputs.frame_weights, inputs.start, inputs.end)


def _soft_logits(cosine: Tensor, unit_prior: Tensor, valid: Tensor, temperature: Temperature) -> Tensor:
    """phi / tau + log prior [B, N, U]; zeros in rows that are not valid, so that softmax is defined."""
    return torch.where(valid[..., None], cosine / temperature + unit_prior.log()[:, None, :], 0)


def _hard_logits(cosine: Tensor, unit_prior: Tensor, valid: Tensor) -> Tensor:
    """phi of the units that have a prior, the others below all [B, N, U]; zeros in rows that are not valid."""
    return torch.where(valid[..., None], torch.where(unit_prior[:, None, :] > 0, cosine, -torch.inf), 0)


def _valid_tokens(token_mask: Tensor, unit_prior: Tensor) -> Tensor:
    return token_mask & (unit_prior > 0).any(1, keepdim=True)


def _of_first_equal(scores: Tensor, inputs: AlignmentInputs, units: Tensor, unit_prior: Tensor) -> Tensor:
    """Scores [B, N, U] as of the first of the units that equal each one: they tie, however a product rounds."""
    speech = _select(inputs.speech, inputs.frame_weights > 0)
    first = first_equal_unit(inputs._replace(speech=speech), units, unit_prior)
    return scores.gather(2, first[:, None, :].expand_as(scores))


def soft_alignment_matrix(inputs: AlignmentInputs) -> Tensor:
    """A [B, N, U]: the posterior of each unit, at a temperature above 0."""
    units, unit_prior, _ = _units(inputs)
    text = _select(inputs.text, inputs.token_mask)
    valid = _valid_tokens(inputs.token_mask, unit_prior)
    if unit_prior.shape[1] == 0:
        return text.new_zeros(*inputs.token_mask.shape, 0)
    cosine = (text / _norm(text)) @ (units / _norm(units)).mT
    logits = _soft_logits(cosine, unit_prior, valid, inputs.temperature)
    # The weights of equal units are the same to the bit; the gradient is that of each one's own.
    equal = _of_first_equal(logits, inputs, units, unit_prior)
    logits = torch.where(equal == logits, logits, logits + (equal - logits).detach())
    return torch.where(valid[..., None], logits.softmax(2), 0)


def alignment(inputs: AlignmentInputs) -> Saved:
    """Similarity, best unit and log-normalizer of each token; differentiable by autograd."""
    units, unit_prior, _ = _units(inputs)
    text = _select(inputs.text, inputs.token_mask)
    valid = _valid_tokens(inputs.token_mask, unit_prior)
    if unit_prior.shape[1] == 0:
        nothing = text.sum(2) * 0
        return Saved(nothing, torch.full_like(nothing, -1, dtype=torch.int64), torch.zeros_like(nothing))
    cosine = (text / _norm(text)) @ (units / _norm(units)).mT
    if inputs.temperature > 0:
        logits = _soft_logits(cosine, unit_prior, valid, inputs.temperature)
        unit = _of_first_equal(logits, inputs, units, unit_prior).argmax(2)
        similarity = (logits.softmax(2) * cosine).sum(2)
        log_normalizer = torch.where(valid, logits.logsumexp(2), 0)
    else:
        logits = _hard_logits(cosine, unit_prior, valid)
        unit = _of_first_equal(logits, inputs, units, (unit_prior > 0).to(unit_prior.dtype)).argmax(2)
        similarity = cosine.gather(2, unit[..., None]).squeeze(2)
        log_normalizer = torch.zeros_like(similarity)
    return Saved(torch.where(valid, similarity, 0), torch.where(valid, unit, -1), log_normalizer)


def _through_norm(grad_direction: Tensor, direction: Tensor, norm: Tensor) -> Tensor:
    """The gradient of v from that of v / max(|v|, eps); below eps the denominator is a constant."""
    along = (grad_direction * direction).sum(-1, keepdim=True)
    return (grad_direction - torch.where(norm > EPS, direction * along, 0)) / norm


def _alignment_backward(grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed) -> Gradients:
    temperature, token_mask = gradient_temperature(inputs.temperature, inputs.text.dtype), inputs.token_mask
    grad_speech, grad_text = inputs.speech.new_empty(0), inputs.text.new_empty(0)
    units, unit_prior, shares = _units(inputs)
    tokens = _select(inputs.text, token_mask)
    unit_norm, token_norm = _norm(units), _norm(tokens)
    units, tokens = units / unit_norm, tokens / token_norm
    valid = saved.unit >= 0
    if unit_prior.shape[1] == 0:
        grad_cosine = tokens.new_zeros(*valid.shape, 0)
    elif temperature > 0:
        cosine = tokens @ units.mT
        posterior = _soft_logits(cosine, unit_prior, valid, temperature).softmax(2)
        grad_cosine = posterior * (1 + (cosine - saved.similarity[..., None]) / temperature)
    else:
        grad_cosine = tokens.new_zeros(*valid.shape, unit_prior.shape[1])
        grad_cosine.scatter_(2, saved.unit.clamp(min=0)[..., None], 1)
    grad_cosine = torch.where(valid[..., None], grad_similarity[..., None] * grad_cosine, 0)
    if needed.text:
        grad = _through_norm(grad_cosine @ units, tokens, token_norm)
        grad_text = torch.where(token_mask[..., None], grad, 0).to(inputs.text.dtype).contiguous()
    if needed.speech:
        grad = _through_norm(grad_cosine.mT @ tokens, units, unit_norm)
        grad = grad if shares is None else shares.mT @ grad
        grad_speech = torch.where((inputs.frame_weights > 0)[..., None], grad, 0)
        grad_speech = grad_speech.to(inputs.speech.dtype).contiguous()
    return grad_speech, grad_text


def _significance(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None) -> Tensor:
    batch, heads, length, _ = query.shape
    dtype = opmath_dtype(query.dtype)
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
            exponent = scores - torch.where(real[..., 0], lse[:, :, block], 0)[..., None].to(dtype)
            # No score is above its row's log-sum-exp, but for rounding, which large scores would magnify without end.
            attention = exponent.clamp(max=0).exp()
        column_sums += torch.where(real, attention, 0).sum((1, 2)) / heads
    total = column_sums.sum(1, keepdim=True)
    return column_sums / torch.where(total > 0, total, 1)


def _anchors(inputs: SpanInputs, count: Tensor, xi: Tensor) -> Tensor:
    """Anchor frames [B, max_anchors] in order of time, the number of frames M where there is none."""
    frame_weights, frame_mask, max_anchors = inputs.frame_weights, inputs.frame_mask, inputs.max_anchors
    frames = frame_weights.shape[1]
    place = torch.arange(max_anchors, device=frame_weights.device)
    wanted = place < count[:, None]
    weights = torch.where(frame_mask, frame_weights, 0)
    if inputs.anchors == "stride":
        real_first = (~frame_mask).to(torch.uint8).argsort(dim=1, stable=True)
        rank = (2 * place + 1) * frame_mask.sum(1, keepdim=True) // (2 * count[:, None]).clamp(min=1)
        chosen = real_first.gather(1, rank.clamp(max=frames - 1))
    elif inputs.anchors == "topk":
        order = weights.argsort(dim=1, descending=True, stable=True)
        chosen = order.gather(1, place.clamp(max=frames - 1).expand(len(weights), -1))
        wanted = wanted & (place < (weights > 0).sum(1, keepdim=True))
    else:
        frame = torch.arange(frames, device=weights.device)
        chosen = torch.zeros(len(weights), max_anchors, dtype=torch.int64, device=weights.device)
        found = torch.zeros_like(wanted)
        for k in range(max_anchors):
            highest, best = weights.max(1, keepdim=True)
            chosen[:, k : k + 1], found[:, k : k + 1] = best, highest > 0
            distance = (frame - best).abs()
            weights = torch.where((distance < xi[:, None] / 2) | (distance == 0), 0, weights)
        wanted = wanted & found
    return torch.where(wanted, chosen, frames).sort(1).values


class ReferenceBackend(Backend):
    """Plain PyTorch: every op, on every device."""

    name = "reference"

    def alignment_forward(self, inputs: AlignmentInputs) -> Saved:
        """`alignment` as the op."""
        with torch.no_grad(), full_precision(inputs.speech.device):
            return alignment(inputs)

    def alignment_backward(
        self, grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed
    ) -> Gradients:
        """d similarity_j / d phi_jk = A_jk (1 + (phi_jk - similarity_j) / tau), or one at the best unit for tau = 0."""
        with full_precision(inputs.speech.device):
            return _alignment_backward(grad_similarity, inputs, saved, needed)

    def soft_alignment_matrix(self, inputs: AlignmentInputs) -> Tensor:
        """`soft_alignment_matrix`, inside autocast too."""
        with full_precision(inputs.speech.device):
            return soft_alignment_matrix(inputs)

    def significance(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None) -> Tensor:
        """Column sums [B, T] of softmax(q k^T scale) over the real rows, mean over heads, scaled to sum to 1."""
        with full_precision(query.device):
            return _significance(query, key, mask, scale, lse)

    def select_spans(self, inputs: SpanInputs) -> tuple[Tensor, Tensor]:
        """Start and end [B, max_anchors * len(scales)] int32 of the spans around each anchor frame."""
        device = inputs.frame_weights.device
        if widest_dtype(device) != torch.float64:  # widths round as on other devices: on the CPU
            start, end = self.select_spans(
                inputs._replace(
                    frame_weights=inputs.frame_weights.cpu(),
                    frame_mask=inputs.frame_mask.cpu(),
                    num_tokens=inputs.num_tokens.cpu(),
                    num_anchors=inputs.num_anchors.cpu(),
                    xi=None if inputs.xi is None else inputs.xi.cpu(),
                )
            )
            return start.to(device), end.to(device)
        frame_mask, num_tokens, max_anchors = inputs.frame_mask, inputs.num_tokens, inputs.max_anchors
        batch, frames = inputs.frame_weights.shape
        if batch == 0 or frames == 0 or max_anchors == 0:
            shape = (batch, max_anchors * len(inputs.scales))
            empty = torch.zeros(shape, dtype=torch.int32, device=frame_mask.device)
            return empty, empty.clone()
        real = frame_mask.sum(1)
        count = torch.where((real > 0) & (num_tokens > 0), inputs.num_anchors.clamp(0, max_anchors), 0)
        xi = inputs.xi
        if xi is None:
            xi = real.double() / num_tokens.clamp(min=1).double()
        xi = xi.double()
        anchor = _anchors(inputs, count, xi)[..., None]
        # A width beyond twice the frames covers them all.
        width = torch.stack([(scale * xi + 0.5).floor() for scale in inputs.scales], 1).clamp(1, 2 * frames + 1)
        width = width.long()[:, None, :]
        first = frame_mask.to(torch.uint8).argmax(1)[:, None, None]
        past = frames - frame_mask.flip(1).to(torch.uint8).argmax(1)[:, None, None]
        low = anchor - width // 2
        bounds = (bound.clamp(first, past).where(anchor < frames, 0) for bound in (low, low + width))
        start, end = (bound.to(torch.int32).flatten(1) for bound in bounds)
        return start, end

    def pooled_distance_forward(self, inputs: PoolingInputs) -> Pooled:
        """sum_d |sum_i p_i s_id - sum_j q_j t_jd|, the differences, and the sums of the weights.

        p and q are the weights over their sum; rows of weight 0 take no part. Zeros where a sum is 0.
        """
        with full_precision(inputs.speech.device):
            totals = torch.stack((inputs.frame_weights.sum(1), inputs.token_weights.sum(1)), 1)
            pooled_speech, pooled_text = (
                (normalize(weights, total)[:, None, :] @ _select(values, weights != 0)).squeeze(1)
                for values, weights, total in (
                    (inputs.speech, inputs.frame_weights, totals[:, :1]),
                    (inputs.text, inputs.token_weights, totals[:, 1:]),
                )
            )
            difference = torch.where((totals == 0).any(1, keepdim=True), 0, pooled_speech - pooled_text)
            return Pooled(difference.abs().sum(1), difference, totals)

    def pooled_distance_backward(self, grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
        """Gradients p_i sign(difference) grad of speech and -q_j sign(difference) grad of text."""
        grad, difference, totals = grad[:, None], saved.difference, saved.totals
        grad_pooled = torch.where(difference > 0, grad, torch.where(difference < 0, -grad, difference))  # keeps a NaN
        dtype = inputs.speech.dtype

        def spread(grad_pooled: Tensor, weights: Tensor, total: Tensor) -> Tensor:
            grad_values = normalize(weights, total)[..., None] * grad_pooled[:, None, :]
            return torch.where((weights != 0)[..., None], grad_values, 0).to(dtype)

        empty = grad.new_empty(0, dtype=dtype)
        return (
            spread(grad_pooled, inputs.frame_weights, totals[:, :1]) if needed.speech else empty,
            spread(-grad_pooled, inputs.token_weights, totals[:, 1:]) if needed.text else empty.clone(),
        )


BACKEND: ReferenceBackend = ReferenceBackend()
