"""Spans of several widths around the most significant frames: anchor-based adaptive span aggregation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pad_kernels import backends, checks
from pad_kernels.ops.weights import position_weights

ANCHORS = ("topk", "peaks", "stride")


class Spans(NamedTuple):
    """Half-open frame ranges [B, U], int32; start == end: no unit here."""

    start: Tensor
    end: Tensor


torch.library.define(
    "pad_kernels::select_spans",
    "(Tensor frame_prior, Tensor frame_mask, Tensor num_tokens, Tensor num_anchors, SymInt max_anchors, "
    "float[] scales, Tensor? xi, str anchors, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _select_spans(frame_prior, *rest):
    *rest, backend = rest
    return backends.serve("select_spans", backend, frame_prior.device, frame_prior.dtype)(frame_prior, *rest)


torch.library.impl("pad_kernels::select_spans", "CompositeExplicitAutograd", _select_spans)


@torch.library.register_fake("pad_kernels::select_spans")
def _select_spans_fake(
    frame_prior, frame_mask, num_tokens, num_anchors, max_anchors, scales, xi, anchors, backend
):
    start = frame_prior.new_empty((frame_prior.shape[0], max_anchors * len(scales)), dtype=torch.int32)
    return start, torch.empty_like(start)


checks.refuse_vmap("pad_kernels::select_spans")


def select_spans(
    speech_prior: Tensor | None,
    speech_mask: Tensor | None,
    num_tokens: Tensor | int,
    *,
    num_anchors: Tensor | int | None = None,
    scales: Sequence[float] = (0.5, 1, 2),
    anchors: str = "topk",
    xi: Tensor | float | None = None,
    max_anchors: int | None = None,
    backend: str | None = None,
) -> Spans:
    """Choose K anchor frames per utterance and lay spans of scale * xi frames around each.

        width = max(1, floor(scale * xi + 0.5)),  xi = real frames / real tokens
        span around frame g: [g - width // 2, g - width // 2 + width), clipped to the real frames

    Unit k * len(scales) + i is the span of the k-th anchor, in order of time, at scales[i]; missing anchors
    leave empty spans at the end.

    Args:
        speech_prior: [B, M] floating point, at least 0. None: anchors are spaced evenly ("stride").
        speech_mask: [B, M] bool or integers 0/1. None: all frames are real. One of the two is needed.
        num_tokens: real tokens of each utterance, [B] integers or one int for all; without any there are no spans.
        num_anchors: K, [B] integers or an int. None: num_tokens.
        scales: widths of an anchor's spans in units of xi.
        anchors: "topk", the K highest priors (ties: the earlier frame); "peaks", the same, but a chosen
            anchor rules out frames nearer than xi / 2; "stride", real frames number floor((k + 0.5) * m / K).
            Frames of prior 0 are never chosen by the first two.
        xi: frames per token, [B] or a number. None: from the utterance.
        max_anchors: the K that the result has room for. None: the largest K, which for a tensor on a GPU is
            waited for.
        backend: as for `align`.

    Returns:
        Spans of start and end, [B, max_anchors * len(scales)] int32.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot serve.

    Source: section 3 of arXiv 2303.03600 (anchor-based adaptive span aggregation).
    """
    backends.check_name(backend)
    checks.choice("anchors", anchors, ANCHORS)
    given = speech_mask if speech_prior is None else speech_prior
    if not isinstance(given, Tensor) or given.dim() != 2:
        name = "speech_mask" if speech_prior is None else "speech_prior"
        raise ValueError(f"{name}: got {checks.describe(given)}, expected a tensor of shape [batch, frames]")
    shape, device = given.shape, given.device
    frame_mask = checks.mask("speech_mask", speech_mask, shape, device)
    if frame_mask is None:
        frame_mask = torch.ones(shape, dtype=torch.bool, device=device)
    if speech_prior is None:
        anchors, frame_prior = "stride", frame_mask.to(torch.float32)
    else:
        frame_prior = position_weights("speech_prior", speech_prior, frame_mask, speech_prior)
    return around_anchors(
        frame_prior, frame_mask, num_tokens, num_anchors, checks.scales(scales), anchors, xi, max_anchors, backend
    )


def around_anchors(
    frame_prior: Tensor,
    frame_mask: Tensor,
    num_tokens: Tensor | int,
    num_anchors: Tensor | int | None,
    scales: list[float],
    anchors: str,
    xi: Tensor | float | None,
    max_anchors: int | None,
    backend: str | None,
) -> Spans:
    """`select_spans` once priors, mask and options are checked: `frame_prior` [B, M] in its accumulator dtype."""
    batch, device = frame_prior.shape[0], frame_prior.device
    wanted = num_tokens if num_anchors is None else num_anchors
    name = "num_tokens" if num_anchors is None else "num_anchors"
    checks.anchors_wanted(name, wanted)
    num_tokens = checks.per_utterance("num_tokens", num_tokens, batch, device, torch.int64)
    num_anchors = num_tokens if num_anchors is None else checks.per_utterance(name, wanted, batch, device, torch.int64)
    if max_anchors is None:
        max_anchors = wanted if isinstance(wanted, int) else int(wanted.max()) if wanted.numel() else 0
    checks.anchors_wanted("max_anchors", max_anchors)
    if xi is not None:
        xi = checks.per_utterance("xi", xi, batch, device, torch.float64)
    run = _select_spans if checks.are_plain(frame_prior) else torch.ops.pad_kernels.select_spans
    return Spans(
        *run(frame_prior, frame_mask, num_tokens, num_anchors, max_anchors, scales, xi, anchors, backend or "")
    )
