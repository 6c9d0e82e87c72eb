"""Alignment of text tokens with speech units by prior-weighted cosine similarity."""

from typing import NamedTuple

import torch
from torch import Tensor

from pad_kernels import backends, checks
from pad_kernels.backends import reference
from pad_kernels.inputs import accumulator
from pad_kernels.ops.weights import MASKED_IN_SPANS, position_weights


class Alignment(NamedTuple):
    """What each token aligns with; all [B, N].

    similarity: float32 (float64 for float64 inputs), differentiable.
    unit: int64 index of the best unit, -1 where the token or its whole utterance takes no part.
    log_normalizer: logarithm of the softmax's denominator; 0 for the hard alignment.
    """

    similarity: Tensor
    unit: Tensor
    log_normalizer: Tensor


_INPUTS = "Tensor speech, Tensor text, Tensor frame_prior, Tensor token_mask, Tensor? start, Tensor? end"
torch.library.define(
    "pad_kernels::alignment_forward",
    f"({_INPUTS}, float temperature, str backend) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "pad_kernels::alignment_backward",
    f"(Tensor grad_similarity, {_INPUTS}, float temperature, Tensor similarity, Tensor unit, "
    "Tensor log_normalizer, bool need_speech, bool need_text, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def forward(speech, text, frame_prior, token_mask, start, end, temperature, backend):
    """The op alignment_forward: similarity, best unit and log-normaliser of each token."""
    function = backends.serve(
        "alignment_forward", backend, speech.device, speech.dtype, speech.shape[2]
    )
    return function(speech, text, frame_prior, token_mask, start, end, temperature)


torch.library.impl("pad_kernels::alignment_forward", "CompositeExplicitAutograd", forward)


@torch.library.register_fake("pad_kernels::alignment_forward")
def _forward_fake(speech, text, frame_prior, token_mask, start, end, temperature, backend):
    similarity = text.new_empty(text.shape[:2], dtype=accumulator(text.dtype))
    return similarity, torch.empty_like(similarity, dtype=torch.int64), torch.empty_like(similarity)


def backward(grad_similarity, speech, *rest):
    """The op alignment_backward: gradients of speech and text, each empty unless needed."""
    *rest, backend = rest
    function = backends.serve(
        "alignment_backward", backend, speech.device, speech.dtype, speech.shape[2]
    )
    return function(grad_similarity, speech, *rest)


torch.library.impl("pad_kernels::alignment_backward", "CompositeExplicitAutograd", backward)


@torch.library.register_fake("pad_kernels::alignment_backward")
def _backward_fake(
    grad_similarity, speech, text, frame_prior, token_mask, start, end, temperature,
    similarity, unit, log_normalizer, need_speech, need_text, backend,
):  # fmt: skip
    grad_speech = speech.new_empty(speech.shape if need_speech else 0)
    return grad_speech, text.new_empty(text.shape if need_text else 0)


def _save(ctx, inputs, output):
    *tensors, ctx.temperature, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_similarity, _unit, _log_normalizer):
    need_speech, need_text = ctx.needs_input_grad[:2]
    if grad_similarity is None or not (need_speech or need_text):
        return (None,) * 8
    *inputs, similarity, unit, log_normalizer = ctx.saved_tensors
    grad_speech, grad_text = torch.ops.pad_kernels.alignment_backward.default(
        grad_similarity, *inputs, ctx.temperature, similarity, unit, log_normalizer,
        need_speech, need_text, ctx.backend,
    )  # fmt: skip
    return grad_speech if need_speech else None, grad_text if need_text else None, *(None,) * 6


def _no_second_gradient(ctx, *grads):
    raise RuntimeError("pad_kernels: the alignment can be differentiated once; its gradient has no gradient")


torch.library.register_autograd("pad_kernels::alignment_forward", _gradients, setup_context=_save)
torch.library.register_autograd("pad_kernels::alignment_backward", _no_second_gradient)
checks.refuse_vmap("pad_kernels::alignment_forward", "pad_kernels::alignment_backward")


def _checked(speech, text, spans, speech_mask, text_mask, speech_prior, temperature):
    speech, text = checks.embeddings(speech, text)
    batch, frames, _ = speech.shape
    speech_mask = checks.mask("speech_mask", speech_mask, speech.shape[:2], speech.device)
    token_mask = checks.mask("text_mask", text_mask, text.shape[:2], text.device)
    if token_mask is None:
        token_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    start, end = checks.spans(spans, batch, frames, speech.device, None)
    masked = 0.0 if start is None else MASKED_IN_SPANS
    frame_prior = position_weights("speech_prior", speech, speech_mask, speech_prior, masked=masked)
    return speech, text, frame_prior, token_mask, start, end, checks.temperature(temperature)


def align(
    speech: Tensor,
    text: Tensor,
    spans: tuple[Tensor, Tensor] | None = None,
    speech_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    speech_prior: Tensor | None = None,
    temperature: float = 0.1,
    backend: str | None = None,
) -> Alignment:
    """Align each text token with the speech frames, or with spans of them.

        phi(u, t) = u.t / (max(|u|, 1e-8) max(|t|, 1e-8))
        A[j, k] = softmax over k of (phi(u_k, t_j) / temperature + log prior_k)
        similarity_j = sum_k A[j, k] phi(u_k, t_j)
        temperature 0: max_k phi(u_k, t_j), ties: the lower index

    A unit is a frame, or the mean of a span's frames weighted by the speech prior; the prior of a span is the
    mean of its real frames' priors. Frames and units of prior 0 take no part.

    Args:
        speech: [B, M, D] float32, float64, bfloat16 or float16.
        text: [B, N, D], same dtype.
        spans: (start, end) [B, U] int32 or int64, half-open, start == end: no unit. None: frames.
        speech_mask, text_mask: [B, M] and [B, N], bool or integers 0/1. None: all real.
        speech_prior: [B, M] floating point, at least 0, any scale whose sum float32 holds. None: uniform
            over the real frames.
        temperature: 0 is the hard alignment; else at least 1e-38.
        backend: "auto", "native", "reference" or "triton". None: PAD_KERNELS_BACKEND, else "auto".

    Returns:
        Alignment of similarity, unit and log_normalizer, [B, N] each. Gradients flow from the similarity to
        speech and text.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot serve.

    Source: section 3 of arXiv 2303.03600 (local alignment); the soft form is this package's.
    """
    backends.check_name(backend)
    arguments = _checked(speech, text, spans, speech_mask, text_mask, speech_prior, temperature)
    return Alignment(*torch.ops.pad_kernels.alignment_forward.default(*arguments, backend or ""))


def alignment_matrix(
    speech: Tensor,
    text: Tensor,
    spans: tuple[Tensor, Tensor] | None = None,
    speech_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    speech_prior: Tensor | None = None,
    temperature: float = 0.1,
    backend: str | None = None,
) -> Tensor:
    """The matrix A [B, N, M or U] that `align` never forms, to look at: each token's weight on every unit.

    Arguments and errors as for `align`. Rows of real tokens sum to 1 (hard: one at the best unit), rows of
    masked tokens are 0. float32, float64 for float64 inputs. Computed in plain PyTorch, whatever the backend.
    """
    backends.check_name(backend)
    arguments = _checked(speech, text, spans, speech_mask, text_mask, speech_prior, temperature)
    return reference.alignment_matrix(*arguments)
