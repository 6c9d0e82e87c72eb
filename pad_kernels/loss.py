"""The losses of PAD: global, token (TLocal) and span (SLocal), made of the ops."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pad_kernels import backends, checks, torch_internals
from pad_kernels.autograd import Loss, RegisteredOps
from pad_kernels.backends.base import Backend
from pad_kernels.inputs import (
    ANCHORS,
    INTEGER,
    LEVELS,
    OP_OF_LEVEL,
    REDUCTIONS,
    LossOptions,
    LossRequest,
    Positions,
    SpanSelection,
    Temperature,
)


def pad_loss(
    speech: Tensor,
    text: Tensor,
    speech_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    speech_prior: Tensor | None = None,
    text_prior: Tensor | None = None,
    *,
    level: str = "span",
    temperature: Temperature = 0.1,
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

    p and q are the priors normalized over the real positions, uniform without one. A position that is masked
    or has prior 0 takes no part; it may hold NaN.

    Args:
        speech: [B, M, D] float32, float64, bfloat16 or float16.
        text: [B, N, D], same dtype; inside torch.autocast the narrower of two dtypes is promoted.
        speech_mask, text_mask: [B, M] and [B, N], bool or integers 0/1. None: all real.
        speech_prior, text_prior: [B, M] and [B, N] floating point, at least 0, any scale. The sum of an utterance
            must fit in float32, and its largest value must be 0 or at least 1.2e-38. No gradient flows to priors.
        level: "global", "token" or "span".
        temperature: of the soft alignment, at least 1e-38; 0 is the paper's hard alignment. Below 1e-5 (float64:
            1e-14) the gradient is that of the hard alignment. Not used by "global". A number, or a tensor of one on
            the CPU. Neither compiles anew for each value of a schedule in torch.compile.
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
    options = _options(level, temperature, num_anchors, scales, anchors, reduction, backend)
    if spans is not None and level != "span":
        raise ValueError(f'spans: got spans with level={level!r}, expected level="span" or no spans')
    speech, text = checks.embeddings(speech, text)
    in_functorch = torch_internals.in_functorch()
    if in_functorch:
        others = (speech_mask, text_mask, speech_prior, text_prior, num_anchors, *(spans or ()))
        checks.refuse_functorch("pad_kernels.pad_loss", speech, text, *others)
    (batch, frames, width), device = speech.shape, speech.device
    shape, text_shape = (batch, frames), (batch, text.shape[1])
    if isinstance(num_anchors, Tensor):
        checks.tensor("num_anchors", num_anchors, INTEGER, (batch,), device, "integers, one for each utterance,")
    speech_mask = checks.mask("speech_mask", speech_mask, shape, device)
    text_mask = checks.mask("text_mask", text_mask, text_shape, device)
    speech_prior = checks.prior("speech_prior", speech_prior, shape, device)
    text_prior = checks.prior("text_prior", text_prior, text_shape, device)
    start, end = (None, None) if spans is None else checks.spans(spans, batch, device)
    run: Backend = RegisteredOps(backend or "")
    counts = num_anchors if isinstance(num_anchors, Tensor) else None
    others = (speech_mask, text_mask, speech_prior, text_prior, start, end, counts)
    if torch_internals.can_bypass_dispatcher(speech, text, *others):
        run = backends.select_backend(OP_OF_LEVEL[level], backend or "", device, speech.dtype, width, level)
    if start is not None and end is not None:
        spans = checks.spans_inside(start, end, frames, run.spans_fit(start, end, frames))
    differentiable = torch.is_grad_enabled() and (speech.requires_grad or text.requires_grad)
    request = LossRequest(
        Positions("speech_prior", speech, speech_mask, speech_prior),
        Positions("text_prior", text, text_mask, text_prior),
        spans,
        options,
        differentiable,
    )
    if not differentiable:
        return run.loss_forward(request)[0]
    apply: Callable[..., Tensor] = Loss.apply
    if in_functorch:  # and no transform is about the tensors
        loss: Tensor = torch_internals.without_functorch(apply, speech, text, request, run)
        return loss
    return apply(speech, text, request, run)


def _check_options(
    level: str,
    temperature: Temperature,
    num_anchors: Tensor | int | None,
    scales: Sequence[float],
    anchors: str,
    reduction: str,
    backend: str | None,
) -> LossOptions:
    checks.choice("level", level, LEVELS)
    checks.choice("anchors", anchors, ANCHORS)
    checks.choice("reduction", reduction, REDUCTIONS)
    temperature = checks.temperature(temperature, used=level != "global")
    if num_anchors is not None:
        checks.anchors_wanted("num_anchors", num_anchors)
    backends.check_name(backend)
    selection = SpanSelection(num_anchors, checks.scales(scales), anchors)
    return LossOptions(level, temperature, reduction, selection)


# Checked once: a training loop gives the same options at every step. The types tell True from 1.
_known_options = functools.lru_cache(maxsize=64, typed=True)(lambda types, *options: _check_options(*options))


def _options(
    level: str,
    temperature: Temperature,
    num_anchors: Tensor | int | None,
    scales: Sequence[float],
    anchors: str,
    reduction: str,
    backend: str | None,
) -> LossOptions:
    given = level, temperature, num_anchors, scales, anchors, reduction, backend
    if (
        type(scales) is not tuple
        or isinstance(num_anchors, Tensor)
        or torch.compiler.is_compiling()
        or isinstance(temperature, Tensor)
    ):
        return _check_options(*given)
    try:
        return _known_options(tuple(map(type, scales)), *given)
    except TypeError:  # an argument without a hash
        return _check_options(*given)


class PADLoss(torch.nn.Module):
    """`pad_loss` as a module: options at construction, tensors at the call.

    Args:
        level, temperature, num_anchors, scales, anchors, reduction, backend: as for `pad_loss`; spans are given at
            the call.

    Raises:
        ValueError: at construction for a wrong option; at the call as `pad_loss`.

    Source: section 3 of arXiv 2303.03600.
    """

    def __init__(
        self,
        level: str = "span",
        temperature: Temperature = 0.1,
        *,
        num_anchors: Tensor | int | None = None,
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
