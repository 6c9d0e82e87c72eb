"""The losses of PAD: global, token (TLocal) and span (SLocal), made of the ops."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pad_kernels import backends, checks, torch_internals
from pad_kernels.autograd import GlobalLoss, LocalLoss, LossOptions, RegisteredOps
from pad_kernels.backends.base import Backend
from pad_kernels.inputs import ANCHORS, LEVELS, REDUCTIONS, LossRequest, Positions, SpanSelection


def pad_loss(
    speech: Tensor,
    text: Tensor,
    speech_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    speech_prior: Tensor | None = None,
    text_prior: Tensor | None = None,
    *,
    level: str = "span",
    temperature: float = 0.1,
    spans: tuple[Tensor, Tensor] | None = None,
    num_anchors: Tensor | int | None = None,
    scales: Sequence[float] = (0.5, 1, 2),
    anchors: str = "topk",
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """PAD loss: pulls the embeddings of an utterance's speech and text together.

        token, span:  sum_j q_j (1 - similarity_j), similarity as in `align`, units = frames or spans
        global:       || sum_i p_i speech_i - sum_j q_j text_j ||_1

    p and q are the priors normalised over the real positions, uniform without one. A position that is masked
    or has prior 0 takes no part; it may hold NaN.

    Args:
        speech: [B, M, D] float32, float64, bfloat16 or float16.
        text: [B, N, D], same dtype; inside torch.autocast the narrower of two dtypes is promoted.
        speech_mask, text_mask: [B, M] and [B, N], bool or integers 0/1. None: all real.
        speech_prior, text_prior: [B, M] and [B, N] floating point, at least 0, any scale whose sum
            float32 holds; constants.
        level: "global", "token" or "span".
        temperature: of the soft alignment; 0 is the paper's hard alignment. Not used by "global".
        spans: (start, end) [B, U] for level "span". None: select_spans with the next three arguments,
            which are explained there.
        num_anchors, scales, anchors: of the spans to select.
        reduction: "mean" over the utterances that have at least one real token and one real unit; "sum";
            "none", the losses [B], 0 where an utterance lacks either.
        backend: "auto", "native", "reference" or "triton". None: PAD_KERNELS_BACKEND, else "auto".

    Returns:
        Scalar, or [B] for "none"; float32, float64 for float64 inputs. Gradients flow to speech and text,
        once: a double backward raises RuntimeError, and so do forward mode (jvp) and torch.func.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot run here.

    Source: section 3 of arXiv 2303.03600 (PAD-Glob, PAD-TLocal, PAD-SLocal).
    """
    selection = _check_options(level, temperature, num_anchors, scales, anchors, reduction, backend)
    if spans is not None and level != "span":
        raise ValueError(f'spans: got spans with level={level!r}, expected level="span" or no spans')
    speech, text = checks.embeddings(speech, text)
    in_functorch = torch_internals.in_functorch()
    if in_functorch:
        others = (speech_mask, text_mask, speech_prior, text_prior, num_anchors, *(spans or ()))
        checks.refuse_functorch("pad_kernels.pad_loss", speech, text, *others)
    device = speech.device
    speech_mask = checks.mask("speech_mask", speech_mask, speech.shape[:2], device)
    text_mask = checks.mask("text_mask", text_mask, text.shape[:2], device)
    checks.prior("speech_prior", speech_prior, speech.shape[:2], device)
    checks.prior("text_prior", text_prior, text.shape[:2], device)
    bounds: tuple[Tensor, ...] = () if spans is None else checks.spans(spans, speech.shape[0], device)
    op = "pooled_distance_forward" if level == "global" else "alignment_forward"
    run = _select(op, backend or "", speech, text, speech_mask, text_mask, speech_prior, text_prior, *bounds)
    if spans is not None:
        start, end = bounds
        spans = checks.spans_inside(start, end, speech.shape[1], run.spans_fit(start, end, speech.shape[1]))
    in_spans = level == "span"
    request = LossRequest(
        Positions("speech_prior", speech, speech_mask, speech_prior),
        Positions("text_prior", text, text_mask, text_prior),
        in_spans,
        spans,
        selection if in_spans and spans is None else None,
    )
    *weights, scratch = run.loss_weights(request)
    apply: Callable[..., Tensor] = LocalLoss.apply
    if level == "global":
        apply, weights = GlobalLoss.apply, weights[:2]
    differentiable = torch.is_grad_enabled() and (speech.requires_grad or text.requires_grad)
    options = LossOptions(float(temperature), reduction, run, differentiable, scratch)
    if in_functorch:  # and no transform is about the inputs
        loss: Tensor = torch_internals.without_functorch(apply, speech, text, *weights, options)
        return loss
    return apply(speech, text, *weights, options)


def _select(op: str, name: str, speech: Tensor, *others: Tensor | None) -> Backend:
    """What a loss made of `op` is computed by."""
    if not torch_internals.can_bypass_dispatcher(speech, *others):
        return RegisteredOps(name)
    return backends.select_backend(op, name, speech.device, speech.dtype, speech.shape[2])


def _check_options(
    level: str,
    temperature: float,
    num_anchors: Tensor | int | None,
    scales: Sequence[float],
    anchors: str,
    reduction: str,
    backend: str | None,
) -> SpanSelection:
    checks.choice("level", level, LEVELS)
    checks.choice("anchors", anchors, ANCHORS)
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.temperature(temperature)
    if num_anchors is not None:
        checks.anchors_wanted("num_anchors", num_anchors)
    backends.check_name(backend)
    return SpanSelection(num_anchors, checks.scales(scales), anchors)


class PADLoss(torch.nn.Module):
    """`pad_loss` as a module: options at construction, tensors at the call."""

    def __init__(
        self,
        level: str = "span",
        temperature: float = 0.1,
        *,
        num_anchors: int | None = None,
        scales: Sequence[float] = (0.5, 1, 2),
        anchors: str = "topk",
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _check_options(level, temperature, num_anchors, scales, anchors, reduction, backend)
        self.level = level
        self.temperature = temperature
        self.num_anchors = num_anchors
        self.scales = tuple(scales)
        self.anchors = anchors
        self.reduction = reduction
        self.backend = backend

    def forward(
        self,
        speech: Tensor,
        text: Tensor,
        speech_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        speech_prior: Tensor | None = None,
        text_prior: Tensor | None = None,
        spans: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The loss; arguments as for `pad_loss`."""
        return pad_loss(
            speech, text, speech_mask, text_mask, speech_prior, text_prior,
            level=self.level, temperature=self.temperature, spans=spans, num_anchors=self.num_anchors,
            scales=self.scales, anchors=self.anchors, reduction=self.reduction, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"level={self.level!r}, temperature={self.temperature}, num_anchors={self.num_anchors}, "
            f"scales={self.scales}, anchors={self.anchors!r}, reduction={self.reduction!r}, "
            f"backend={self.backend!r}"
        )
