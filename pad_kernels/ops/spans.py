"""Spans of several widths around the most significant frames: anchor-based adaptive span aggregation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_kernels import backends, checks, registration, torch_internals
from pad_kernels.inputs import ANCHORS, FLOATING, Positions, SpanInputs, SpanSelection, widest_dtype
from pad_kernels.weights import position_weights


class Spans(NamedTuple):
    """Half-open frame ranges [B, U], int32; start == end: no unit here."""

    start: Tensor
    end: Tensor


def _run(inputs: SpanInputs, backend: str) -> tuple[Tensor, Tensor]:
    weights = inputs.frame_weights
    chosen = backends.select_backend("select_spans", backend, weights.device, weights.dtype)
    return chosen.select_spans(inputs)


def _check(inputs: SpanInputs) -> None:
    """The inputs of select_spans. Counts beyond `max_anchors` are cut to it by every backend."""
    weights, device = inputs.frame_weights, inputs.frame_weights.device
    if not checks.is_strided(weights) or weights.dim() != 2 or weights.dtype not in FLOATING:
        checks.wrong("frame_weights", weights, "a floating-point tensor of shape [batch, frames]")
    batch = (weights.shape[0],)
    checks.exactly("frame_mask", inputs.frame_mask, torch.bool, weights.shape, device)
    checks.exactly("num_tokens", inputs.num_tokens, torch.int64, batch, device)
    checks.exactly("num_anchors", inputs.num_anchors, torch.int64, batch, device)
    checks.count("max_anchors", inputs.max_anchors)
    checks.scales(inputs.scales)
    if inputs.xi is not None:
        checks.exactly("xi", inputs.xi, widest_dtype(device), batch, device)
    checks.choice("anchors", inputs.anchors, ANCHORS)


def _select_spans(*arguments: Any) -> tuple[Tensor, Tensor]:
    *values, backend = arguments
    inputs = SpanInputs(*values)
    _check(inputs)
    return _run(inputs, backend)


def _select_spans_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = SpanInputs(*arguments[:-1])
    shape = (inputs.frame_weights.shape[0], inputs.max_anchors * len(inputs.scales))
    start = inputs.frame_weights.new_empty(shape, dtype=torch.int32)
    return start, torch.empty_like(start)


registration.define(
    "select_spans",
    "(Tensor frame_weights, Tensor frame_mask, Tensor num_tokens, Tensor num_anchors, SymInt max_anchors, "
    "float[] scales, Tensor? xi, str anchors, str backend) -> (Tensor, Tensor)",
    _select_spans,
    _select_spans_fake,
)
registration.refuse_vmap("select_spans")


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
            anchor rules out frames nearer than xi / 2; "stride", evenly spaced: of m real frames, counted from
            0, number floor((k + 0.5) m / K). Frames of prior 0 are never chosen by the first two.
        xi: frames per token, [B] or a number. None: from the utterance.
        max_anchors: the K that the result has room for. None: the largest K, which for a tensor on a GPU is
            waited for.
        backend: as for `align`.

    Returns:
        Spans of start and end, [B, max_anchors * len(scales)] int32.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot run here.

    Source: section 3 of arXiv 2303.03600 (anchor-based adaptive span aggregation).
    """
    backends.check_name(backend)
    if torch_internals.in_functorch():
        checks.refuse_vmap("pad_kernels.select_spans", speech_prior, speech_mask, num_tokens, num_anchors, xi)
    checks.choice("anchors", anchors, ANCHORS)
    given = speech_mask if speech_prior is None else speech_prior
    if not checks.is_strided(given) or given.dim() != 2:
        name = "speech_mask" if speech_prior is None else "speech_prior"
        raise ValueError(f"{name}: got {checks.describe(given)}, expected a tensor of shape [batch, frames]")
    shape, device = given.shape, given.device
    frame_mask = checks.mask("speech_mask", speech_mask, shape, device)
    if frame_mask is None:
        frame_mask = torch.ones(shape, dtype=torch.bool, device=device)
    if speech_prior is None:
        anchors, frame_weights = "stride", frame_mask.to(torch.float32)
    else:
        checks.prior("speech_prior", speech_prior, shape, device)
        frame_weights = position_weights(Positions("speech_prior", speech_prior, frame_mask, speech_prior))
    selection = SpanSelection(num_anchors, checks.scales(scales), anchors)
    inputs = checks.span_inputs(frame_weights, frame_mask, num_tokens, selection, xi=xi, max_anchors=max_anchors)
    tensors = frame_weights, frame_mask, inputs.num_tokens, inputs.num_anchors, inputs.xi
    if torch_internals.can_bypass_dispatcher(*tensors):
        return Spans(*_run(inputs, backend or ""))
    return Spans(*torch.ops.pad_kernels.select_spans(*inputs, backend or ""))
