"""The losses of PAD: global, token (TLocal) and span (SLocal), made of the ops."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pad_kernels import backends, checks
from pad_kernels.autograd import GlobalLoss, LocalLoss
from pad_kernels.backends import reference
from pad_kernels.ops.spans import ANCHORS, around_anchors
from pad_kernels.ops.weights import MASKED_IN_SPANS, position_weights

LEVELS = ("global", "token", "span")
REDUCTIONS = ("mean", "sum", "none")


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
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot serve.

    Source: section 3 of arXiv 2303.03600 (PAD-Glob, PAD-TLocal, PAD-SLocal).
    """
    _check_options(level, temperature, num_anchors, scales, anchors, reduction, backend)
    if spans is not None and level != "span":
        raise ValueError(f'spans: got spans with level={level!r}, expected level="span" or no spans')
    backend = backend or ""
    speech, text = checks.embeddings(speech, text)
    speech_mask = checks.mask("speech_mask", speech_mask, speech.shape[:2], speech.device)
    text_mask = checks.mask("text_mask", text_mask, text.shape[:2], text.device)
    plain = checks.are_plain(speech, text)
    compiled = backends.compiled(backend, speech.device) if plain else None
    masked = MASKED_IN_SPANS if level == "span" else 0.0
    frame_prior = position_weights("speech_prior", speech, speech_mask, speech_prior, compiled, masked=masked)
    token_prior = position_weights("text_prior", text, text_mask, text_prior, compiled, normalized=True)

    if level == "global":
        run = GlobalLoss.apply if plain else _global_loss
        return run(speech, text, frame_prior, token_prior, reduction, backend)
    if spans is not None:
        start, end = checks.spans(spans, *speech.shape[:2], speech.device, compiled)
    elif level == "span":
        start, end = _select(frame_prior, speech_mask, speech_prior, text, text_mask, num_anchors, scales, anchors,
                             backend)  # fmt: skip
    else:
        start = end = None
    run = LocalLoss.apply if plain else _local_loss
    return run(speech, text, frame_prior, token_prior, start, end, float(temperature), reduction, backend)


def _local_loss(speech, text, frame_prior, token_prior, start, end, temperature, reduction, backend):
    similarity, unit, _ = torch.ops.pad_kernels.alignment_forward.default(
        speech, text, frame_prior, token_prior > 0, start, end, temperature, backend
    )
    return reference.token_loss(similarity, unit, token_prior, reduction)[0]


def _global_loss(speech, text, frame_weights, token_weights, reduction, backend):
    distance, _, totals = torch.ops.pad_kernels.pooled_distance_forward.default(
        speech, text, frame_weights, token_weights, backend
    )
    return reference.pooled_loss(distance, totals, reduction)[0]


def _select(frame_prior, speech_mask, speech_prior, text, text_mask, num_anchors, scales, anchors, backend):
    batch, tokens, _ = text.shape
    if speech_mask is None:
        speech_mask = torch.ones(frame_prior.shape, dtype=torch.bool, device=text.device)
    # Without a prior there is nothing to choose anchors by.
    return around_anchors(
        frame_prior,
        speech_mask,
        tokens if text_mask is None else text_mask.sum(1),
        num_anchors,
        checks.scales(scales),
        "stride" if speech_prior is None else anchors,
        None,
        tokens if num_anchors is None else None,
        # Triton has no selection of spans; the alignment is what was asked of it.
        "auto" if backend == "triton" else backend,
    )


def _check_options(level, temperature, num_anchors, scales, anchors, reduction, backend):
    options = (level, temperature, num_anchors, anchors, reduction, backend)
    # A training loop passes the same options every time. `typed`: True is not 1.
    if isinstance(scales, (tuple, list)) and not torch.compiler.is_compiling() and not isinstance(num_anchors, Tensor):
        try:
            return _remembered(*options, *scales)
        except TypeError:  # what has no hash is wrong, and named below
            pass
    _check(*options, scales)


@functools.lru_cache(typed=True)
def _remembered(*options):
    _check(*options[:6], options[6:])


def _check(level, temperature, num_anchors, anchors, reduction, backend, scales):
    checks.choice("level", level, LEVELS)
    checks.choice("anchors", anchors, ANCHORS)
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.temperature(temperature)
    if num_anchors is not None:
        checks.anchors_wanted("num_anchors", num_anchors)
    checks.scales(scales)
    backends.check_name(backend)


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
    ):
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
