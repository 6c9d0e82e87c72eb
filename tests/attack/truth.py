"""The method in float64, one utterance at a time and without padding: only what takes part is ever looked at.

Written from the docs, and from nothing of the package; gradients are autograd's.
"""

from typing import NamedTuple

import torch
from oracle import spans_of
from torch import Tensor

EPS = 1e-8


def is_hard(case) -> bool:
    """Whether a loss has the gradient of the hard alignment, and up to rounding its value."""
    return case.temperature < (1e-14 if case.speech.dtype == torch.float64 else 1e-5)


class Found(NamedTuple):
    """A value, and what it is left over from: an error is judged by either."""

    value: Tensor
    scale: Tensor  # of the same shape, or a number for the norm of the whole


class Utterance(NamedTuple):
    """What takes part in an utterance, float64."""

    speech: Tensor  # [F, D], a leaf
    text: Tensor  # [T, D], a leaf
    frames: Tensor  # [F] their places
    tokens: Tensor  # [T]
    pooling: Tensor  # [U, F] weights of the frames in each unit that takes part
    units: Tensor  # [U] their places
    prior: Tensor  # [U]


def weights(mask: Tensor | None, prior: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Which positions are real, and the prior as it is given (uniform: 1 / number of real ones); 0 elsewhere."""
    real = torch.ones(length, dtype=torch.bool) if mask is None else mask != 0
    given = torch.full((length,), 1 / max(int(real.sum()), 1), dtype=torch.float64) if prior is None else prior.double()
    return real, torch.where(real, given, 0)


def spans_chosen(case, b: int) -> list[tuple[int, int]]:
    """The spans of utterance `b` that the loss chooses for itself."""
    frames, tokens = case.speech.shape[1], case.text.shape[1]
    real = weights(case.speech_mask if case.speech_mask is None else case.speech_mask[b], None, frames)[0]
    count = tokens if case.text_mask is None else int((case.text_mask[b] != 0).sum())
    wanted = case.num_anchors
    wanted = count if wanted is None else int(wanted[b]) if isinstance(wanted, Tensor) else wanted
    prior = None if case.speech_prior is None else case.speech_prior[b].double().tolist()
    if prior is not None:
        prior = [value if is_real else 0 for value, is_real in zip(prior, real.tolist())]
    return spans_of(prior, real.tolist(), count, wanted, case.scales, None, case.anchors)


def utterance(case, b: int, spans: list[tuple[int, int]] | None, token_weights: Tensor) -> Utterance:
    """Utterance `b` of a case; spans None: the units are frames."""
    mask, prior = (None if x is None else x[b] for x in (case.speech_mask, case.speech_prior))
    real, prior = weights(mask, prior, case.speech.shape[1])
    frames, tokens = (prior > 0).nonzero()[:, 0], (token_weights > 0).nonzero()[:, 0]
    if spans is None:
        pooling, units, priors = torch.eye(len(frames), dtype=torch.float64), frames, prior[frames]
    else:
        rows, places, means = [], [], []
        for place, (start, end) in enumerate(spans):
            inside = (frames >= start) & (frames < end)
            if inside.any():
                share = torch.where(inside, prior[frames], 0)
                rows.append(share / share.sum())
                places.append(place)
                means.append(share.sum() / real[start:end].sum())
        pooling = torch.stack(rows) if rows else torch.zeros(0, len(frames), dtype=torch.float64)
        units, priors = torch.tensor(places, dtype=torch.int64), torch.tensor(means, dtype=torch.float64)
    speech, text = (
        x[b].detach()[kept].double().requires_grad_() for x, kept in ((case.speech, frames), (case.text, tokens))
    )
    return Utterance(speech, text, frames, tokens, pooling, units, priors)


def cosines(each: Utterance) -> Tensor:
    """[T, U]."""
    units = each.pooling @ each.speech
    norms = [x.norm(dim=1, keepdim=True).clamp(min=EPS) for x in (each.text, units)]
    return (each.text / norms[0]) @ (units / norms[1]).mT


def scores(each: Utterance, cosine: Tensor, temperature: float) -> Tensor:
    """What the best unit has most of."""
    return cosine if temperature == 0 else cosine / temperature + each.prior.log()


def similarities(each: Utterance, temperature: float, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities [T], weights of the units [T, U], log-normalizers [T]; chosen: the hard units, as places in U."""
    cosine = cosines(each)
    if temperature == 0:
        best = cosine.argmax(1) if chosen is None else chosen
        matrix = torch.nn.functional.one_hot(best, cosine.shape[1]).double()
        return (matrix * cosine).sum(1), matrix, torch.zeros(len(cosine), dtype=torch.float64)
    logits = scores(each, cosine, temperature)
    matrix = logits.softmax(1)
    return (matrix * cosine).sum(1), matrix.detach(), logits.logsumexp(1).detach()


def cancellation(each: Utterance) -> Tensor:
    """How many times longer the weighed frames of each unit are than what is left of them in their mean; 1 or more."""
    left = (each.pooling @ each.speech).detach().norm(dim=1).clamp(min=EPS)
    return ((each.pooling @ each.speech.detach().abs()).norm(dim=1) / left).clamp(min=1)


def scales_of(each: Utterance, matrix: Tensor, shares: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a loss, and for each frame and token the length of its gradient, is left over from; `shares` [T]."""
    units = (each.pooling @ each.speech).detach()
    steepness = 2 if temperature == 0 else 2 * max(1.0, 1 / temperature)
    weight = shares[:, None] * matrix * cancellation(each)
    of_units = steepness * weight.sum(0) / units.norm(dim=1).clamp(min=EPS)
    of_text = steepness * weight.sum(1) / each.text.detach().norm(dim=1).clamp(min=EPS)
    return weight.sum(), each.pooling.mT @ of_units, of_text


def loss(case, upstream: Tensor, units: Tensor | None) -> tuple[Found, Found, Found, Tensor]:
    """The loss, its gradients for `upstream` (of the reduced loss), and which columns the gradients are certain in.

    units: [B, N] the units of the hard alignment that a backend has taken, where that is to be believed.
    """
    batch, length, width = case.speech.shape
    values, scales = torch.zeros(2, batch, dtype=torch.float64)
    gradients = [torch.zeros(x.shape, dtype=torch.float64) for x in (case.speech, case.text)]
    spread = [torch.zeros(x.shape[:2], dtype=torch.float64) for x in (case.speech, case.text)]
    certain = torch.ones(batch, width, dtype=torch.bool)
    counted = []
    temperature = 0.0 if is_hard(case) else case.temperature
    for b in range(batch):
        text_mask, text_prior = (None if x is None else x[b] for x in (case.text_mask, case.text_prior))
        q = weights(text_mask, text_prior, case.text.shape[1])[1]
        q = q / (q.sum() if q.sum() > 0 else 1)
        spans = None
        if case.level == "span":
            spans = spans_chosen(case, b) if case.spans is None else list(zip(*(x[b].tolist() for x in case.spans)))
        each = utterance(case, b, spans, q)
        if not len(each.tokens) or not len(each.units):
            continue
        q = q[each.tokens]
        if case.level == "global":
            p = each.prior / each.prior.sum()
            difference = p @ each.speech - q @ each.text
            size = p @ each.speech.detach().abs() + q @ each.text.detach().abs()
            certain[b] = difference.detach().abs() > 1e-6 * size
            value, scales[b] = difference.abs().sum(), size.sum()
            lengths = [torch.zeros(len(x), dtype=torch.float64) for x in (each.speech, each.text)]
        else:
            chosen = None
            if units is not None:
                chosen = torch.searchsorted(each.units, units[b][each.tokens].clamp(min=0)).clamp(
                    max=len(each.units) - 1
                )
            similarity, matrix, _ = similarities(each, temperature, chosen)
            value = (q * (1 - similarity)).sum()
            scales[b], *lengths = scales_of(each, matrix, q, temperature)
        values[b] = value.detach()
        counted.append((b, each, torch.autograd.grad(value, (each.speech, each.text)), lengths))
    share = 1 / max(len(counted), 1) if case.reduction == "mean" else 1.0
    for b, each, grads, lengths in counted:
        factor = share * float(upstream[b] if case.reduction == "none" else upstream)
        for whole, scale, places, grad, long in zip(gradients, spread, (each.frames, each.tokens), grads, lengths):
            whole[b, places] = factor * grad
            scale[b, places] = abs(factor) * long
    if case.reduction != "none":
        values, scales = share * values.sum(), share * scales.sum()
    return Found(values, scales), *(Found(g, s.norm()) for g, s in zip(gradients, spread)), certain


def align(case, b: int) -> tuple[Utterance, Tensor, Tensor, Tensor, Tensor] | None:
    """(utterance, similarities, matrix, log-normalizers, scores) of utterance `b`; None where nothing takes part."""
    text_mask = None if case.text_mask is None else case.text_mask[b]
    spans = None if case.spans is None else list(zip(*(x[b].tolist() for x in case.spans)))
    each = utterance(case, b, spans, weights(text_mask, None, case.text.shape[1])[1])
    if not len(each.tokens) or not len(each.units):
        return None
    found = (x.detach() for x in similarities(each, case.temperature, None))
    return each, *found, scores(each, cosines(each), case.temperature).detach()


def significance(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor, float]:
    """The prior [B, T], the log-sum-exp of the rows [B, H, T] (NaN in those that are not real), the largest score."""
    batch, heads, length, _ = query.shape
    prior = torch.zeros(batch, length, dtype=torch.float64)
    normalizer = torch.full((batch, heads, length), torch.nan, dtype=torch.float64)
    largest = 0.0
    for b in range(batch):
        real = torch.arange(length) if mask is None else (mask[b] != 0).nonzero()[:, 0]
        if not len(real):
            continue
        scores = query[b][:, real].double() @ key[b][:, real].double().mT * scale
        normalizer[b][:, real] = scores.logsumexp(2)
        prior[b, real] = scores.softmax(2).mean(0).sum(0) / len(real)
        largest = max(largest, float(scores.abs().max()))
    return prior, normalizer, largest
