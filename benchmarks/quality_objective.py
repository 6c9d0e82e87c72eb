"""The loss of a configuration of the quality benchmark: `pad_loss`, with what is tried of the priors before it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.quality_configurations import Configuration
from pad.priors.record import Record
from pad_kernels import Spans, pad_loss, select_spans
from pad_kernels.backends.reference import pool_spans


class Aligned(NamedTuple):
    """A batch: speech [B, M, D], text [B, N, D], masks [B, M] and [B, N], priors alike or None.

    anchor_prior: chooses the anchors; None: the speech prior does.
    """

    speech: Tensor
    text: Tensor
    speech_mask: Tensor
    text_mask: Tensor
    speech_prior: Tensor | None
    anchor_prior: Tensor | None
    text_prior: Tensor | None


def recorded_layers(configuration: Configuration) -> tuple[int, ...] | None:
    """The layers to record: those of the objective, or all where layers are told apart."""
    return configuration.objective.prior_layers if configuration.anchor_layers is None else None


def priors(configuration: Configuration, record: Record | None) -> tuple[Tensor | None, Tensor | None]:
    """The speech prior and the one that chooses the anchors, [B, M] each, of what was recorded."""
    if record is None:
        return None, None
    if configuration.anchor_layers is None:
        return record.prior(), None
    if configuration.objective.prior_layer_weights is not None:
        raise ValueError("anchor_layers: not beside prior_layer_weights")
    layers = record.layer_priors()
    pooling = list(configuration.objective.prior_layers or range(len(layers)))
    return layers[pooling].mean(dim=0), layers[list(configuration.anchor_layers)].mean(dim=0)


def loss(configuration: Configuration, batch: Aligned, progress: float) -> Tensor:
    """The loss of a batch, a scalar; progress: the share of the steps that is done."""
    objective = configuration.objective
    batch = batch._replace(speech_prior=_shaped(configuration, batch, progress))
    num_tokens = batch.text_mask.sum(dim=1)
    as_objective = configuration.anchors_per_token == 1 and batch.anchor_prior is None
    if as_objective and not configuration.weighed_similarity:
        return objective(*batch[:5], batch.text_prior)
    spans = None
    if objective.level == "span":
        chooses = batch.speech_prior if batch.anchor_prior is None else batch.anchor_prior
        spans = select_spans(
            chooses,
            batch.speech_mask,
            num_tokens,
            num_anchors=configuration.anchors_per_token * num_tokens,
            scales=objective.scales,
            anchors=objective.anchors,
        )
    if configuration.weighed_similarity:
        return weighed_similarity_loss(batch, spans, objective.temperature)
    return pad_loss(
        *batch[:5],
        batch.text_prior if objective.text_prior else None,
        level=objective.level,
        temperature=objective.temperature,
        spans=spans,
    )


def _shaped(configuration: Configuration, batch: Aligned, progress: float) -> Tensor | None:
    prior, mask = batch.speech_prior, batch.speech_mask
    if prior is None:
        return None
    if configuration.largest_prior is not None:
        real = prior.where(mask, 0)
        mean = real.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        prior = prior.minimum(configuration.largest_prior * mean)
    if progress < configuration.prior_warm_up:
        prior = prior.pow(progress / configuration.prior_warm_up)
    return prior


def weighed_similarity_loss(batch: Aligned, spans: Spans | None, temperature: float) -> Tensor:
    """The mean distance where each similarity is weighed by the unit's prior, the largest of which counts as 1.

    similarity_j = sum_k softmax_k(w_k phi(u_k, t_j) / temperature) w_k phi(u_k, t_j),  w_k = p_k / max p;
    spans None: units are frames. Source: the other reading of section 3 of arXiv 2303.03600, of the local level.
    """
    prior = batch.speech_prior.where(batch.speech_mask, 0)
    speech = batch.speech.where(batch.speech_mask[..., None], 0)
    text = batch.text.where(batch.text_mask[..., None], 0)
    units, weights = speech, prior
    if spans is not None:
        units, weights, _ = pool_spans(speech, prior.where(batch.speech_mask, -1), *spans)
    weights = weights / weights.amax(dim=1, keepdim=True).clamp(min=1e-30)
    weighed = weights[:, None] * cosine_similarity(text[:, :, None], units[:, None], dim=-1)  # [B, N, U]
    scores = (weighed / temperature).masked_fill(weights[:, None] == 0, -torch.inf)
    distance = 1 - (scores.softmax(dim=2) * weighed).sum(dim=2)
    real = batch.text_mask.float()
    return ((distance * real).sum(dim=1) / real.sum(dim=1)).mean()
