"""Alignment of text tokens with speech units by prior-weighted cosine similarity."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_kernels import backends, checks, registration
from pad_kernels.backends import reference
from pad_kernels.backends.base import Backend
from pad_kernels.inputs import (
    MASKED_IN_SPANS,
    AlignmentInputs,
    Gradients,
    Needed,
    Positions,
    Saved,
    Temperature,
    opmath_dtype,
)
from pad_kernels.weights import position_weights


class Alignment(NamedTuple):
    """What each token aligns with; all [B, N].

    similarity: float32 (float64 for float64 inputs), differentiable.
    unit: int64 index of the best unit, -1 where the token or its whole utterance takes no part.
    log_normalizer: logarithm of the softmax's denominator; 0 for the hard alignment.
    """

    similarity: Tensor
    unit: Tensor
    log_normalizer: Tensor


_INPUTS = "Tensor speech, Tensor text, Tensor frame_weights, Tensor token_mask, Tensor? start, Tensor? end"
# scheduled_temperature: goes before `temperature`; a trace can serve every value of a tensor, but not of a number.
_FORWARD = (
    f"({_INPUTS}, float temperature, str backend, Tensor? scheduled_temperature=None) -> (Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    f"(Tensor grad_similarity, {_INPUTS}, float temperature, Tensor similarity, Tensor unit, "
    "Tensor log_normalizer, bool need_speech, bool need_text, str backend, Tensor? scheduled_temperature=None) "
    "-> (Tensor, Tensor)"
)


def _select(op: str, name: str, inputs: AlignmentInputs) -> Backend:
    speech = inputs.speech
    return backends.select_backend(op, name, speech.device, speech.dtype, speech.shape[2])


def _with_temperature(inputs: AlignmentInputs, scheduled: Tensor | None) -> AlignmentInputs:
    return inputs if scheduled is None else inputs._replace(temperature=scheduled.item())


def _check_forward(inputs: AlignmentInputs) -> None:
    """The inputs of alignment_forward. Spans that reach beyond the frames are clipped by every backend."""
    speech, text, frame_weights, token_mask, start, end, _ = inputs
    checks.op_sides(speech, text)
    device = speech.device
    checks.floating("frame_weights", frame_weights, speech.shape[:2], device)
    checks.exactly("token_mask", token_mask, torch.bool, text.shape[:2], device)
    if start is not None or end is not None:
        checks.spans((start, end), speech.shape[0], device)
    checks.temperature(inputs.temperature)


def _check_backward(grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved) -> None:
    """The inputs of alignment_backward: as in the forward, and what it gave."""
    _check_forward(inputs)
    speech, text = inputs.speech, inputs.text
    shape, device, dtype = text.shape[:2], speech.device, opmath_dtype(speech.dtype)
    checks.floating("grad_similarity", grad_similarity, shape, device)
    checks.exactly("similarity", saved.similarity, dtype, shape, device)
    checks.exactly("unit", saved.unit, torch.int64, shape, device)
    checks.exactly("log_normalizer", saved.log_normalizer, dtype, shape, device)
    if saved.unit.numel() and checks.values_can_be_read(saved.unit):
        lowest, highest = (int(bound) for bound in torch.aminmax(saved.unit))
        if lowest < -1 or highest >= inputs.units:
            raise ValueError(f"unit: got values from {lowest} to {highest}, expected -1 to {inputs.units - 1}")


def _forward(
    speech: Tensor,
    text: Tensor,
    frame_weights: Tensor,
    token_mask: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    temperature: float,
    backend: str,
    scheduled_temperature: Tensor | None = None,
) -> Saved:
    inputs = AlignmentInputs(speech, text, frame_weights, token_mask, start, end, temperature)
    inputs = _with_temperature(inputs, scheduled_temperature)
    _check_forward(inputs)
    return _select("alignment_forward", backend, inputs).alignment_forward(inputs)


def _forward_fake(speech: Tensor, text: Tensor, *others: Any) -> Saved:
    similarity = text.new_empty(text.shape[:2], dtype=opmath_dtype(text.dtype))
    return Saved(similarity, torch.empty_like(similarity, dtype=torch.int64), torch.empty_like(similarity))


def _backward(
    grad_similarity: Tensor,
    speech: Tensor,
    text: Tensor,
    frame_weights: Tensor,
    token_mask: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    temperature: float,
    similarity: Tensor,
    unit: Tensor,
    log_normalizer: Tensor,
    need_speech: bool,
    need_text: bool,
    backend: str,
    scheduled_temperature: Tensor | None = None,
) -> Gradients:
    inputs = AlignmentInputs(speech, text, frame_weights, token_mask, start, end, temperature)
    inputs = _with_temperature(inputs, scheduled_temperature)
    saved = Saved(similarity, unit, log_normalizer)
    _check_backward(grad_similarity, inputs, saved)
    chosen, needed = _select("alignment_backward", backend, inputs), Needed(need_speech, need_text)
    return chosen.alignment_backward(grad_similarity, inputs, saved, needed)


def _backward_fake(grad_similarity: Tensor, speech: Tensor, text: Tensor, *others: Any) -> Gradients:
    need_speech, need_text = others[8:10]
    return registration.fake_gradients(speech, text, Needed(need_speech, need_text))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Saved) -> None:
    *tensors, ctx.temperature, ctx.backend, scheduled = (*inputs, None)[:9]
    ctx.save_for_backward(*tensors, *output, scheduled)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_similarity: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needed = Needed(*ctx.needs_input_grad[:2])
    if grad_similarity is None or not any(needed):
        return (None,) * 9
    *tensors, similarity, unit, log_normalizer, scheduled = ctx.saved_tensors
    speech, text, frame_weights, token_mask, start, end = tensors
    temperature = ctx.temperature if scheduled is None else scheduled
    inputs = AlignmentInputs(speech, text, frame_weights, token_mask, start, end, temperature)
    grads = call_backward(grad_similarity, inputs, Saved(similarity, unit, log_normalizer), needed, ctx.backend)
    return *(grad if wanted else None for grad, wanted in zip(grads, needed)), *(None,) * 7


def _number_and_tensor(temperature: Temperature) -> tuple[float, Tensor | None]:
    """The temperature as the registered ops take it."""
    return (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)


def call_forward(inputs: AlignmentInputs, backend: str) -> Saved:
    """torch.ops.pad_kernels.alignment_forward"""
    *tensors, temperature = inputs
    number, scheduled = _number_and_tensor(temperature)
    return Saved(*torch.ops.pad_kernels.alignment_forward.default(*tensors, number, backend, scheduled))


def call_backward(
    grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed, backend: str
) -> Gradients:
    """torch.ops.pad_kernels.alignment_backward"""
    *tensors, temperature = inputs
    number, scheduled = _number_and_tensor(temperature)
    grads: Gradients = torch.ops.pad_kernels.alignment_backward.default(
        grad_similarity, *tensors, number, *saved, *needed, backend, scheduled
    )
    return grads


registration.define("alignment_forward", _FORWARD, _forward, _forward_fake)
registration.define("alignment_backward", _BACKWARD, _backward, _backward_fake)
torch.library.register_autograd("pad_kernels::alignment_forward", _gradients, setup_context=_save)
registration.refuse_vmap("alignment_forward")
registration.differentiate_once("alignment_backward", "the alignment")


def _checked(
    speech: Tensor,
    text: Tensor,
    spans: tuple[Tensor, Tensor] | None,
    speech_mask: Tensor | None,
    text_mask: Tensor | None,
    speech_prior: Tensor | None,
    temperature: Temperature,
) -> AlignmentInputs:
    """The arguments of `align`, folded."""
    speech, text = checks.embeddings(speech, text)
    batch, frames, _ = speech.shape
    speech_mask = checks.mask("speech_mask", speech_mask, speech.shape[:2], speech.device)
    token_mask = checks.mask("text_mask", text_mask, text.shape[:2], text.device)
    if token_mask is None:
        token_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    start = end = None
    if spans is not None:
        start, end = checks.spans(spans, batch, speech.device)
        start, end = checks.spans_inside(start, end, frames, checks.spans_fit(start, end, frames))
    masked = 0.0 if start is None else MASKED_IN_SPANS
    checks.prior("speech_prior", speech_prior, speech.shape[:2], speech.device)
    frame_weights = position_weights(Positions("speech_prior", speech, speech_mask, speech_prior), masked=masked)
    return AlignmentInputs(speech, text, frame_weights, token_mask, start, end, checks.temperature(temperature))


def align(
    speech: Tensor,
    text: Tensor,
    spans: tuple[Tensor, Tensor] | None = None,
    speech_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    speech_prior: Tensor | None = None,
    temperature: Temperature = 0.1,
    backend: str | None = None,
) -> Alignment:
    """Align each text token with the speech frames, or with spans of them.

        phi(u, t) = u.t / (max(|u|, 1e-8) max(|t|, 1e-8))
        A[j, k] = softmax over k of (phi(u_k, t_j) / temperature + log prior_k)
        similarity_j = sum_k A[j, k] phi(u_k, t_j)
        temperature 0: max_k phi(u_k, t_j)

    Of equal units, frames of the same values or spans with the same bounds, the one with the lower index is taken.
    A unit is a frame, or the mean of a span's frames weighted by the speech prior; the prior of a span is the
    mean of its real frames' priors. Frames and units of prior 0 take no part.

    Args:
        speech: [B, M, D] float32, float64, bfloat16 or float16.
        text: [B, N, D], same dtype.
        spans: (start, end) [B, U] int32 or int64, half-open, start == end: no unit. None: frames.
        speech_mask, text_mask: [B, M] and [B, N], bool or integers 0/1. None: all real.
        speech_prior: [B, M] floating point, at least 0, any scale whose sum fits in float32. None: uniform
            over the real frames. No gradient flows to it.
        temperature: 0 is the hard alignment; else at least 1e-38. Below 1e-5 (float64: 1e-14) the gradient is that
            of the hard alignment. A number, or a tensor of one on the CPU, without dimensions.
        backend: "auto", "native", "reference" or "triton". None: PAD_KERNELS_BACKEND, else "auto".

    Returns:
        Alignment of similarity, unit and log_normalizer, [B, N] each. Gradients flow from the similarity to
        speech and text.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot run here.

    Source: section 3 of arXiv 2303.03600 (local alignment); the soft form is this package's.
    """
    backends.check_name(backend)
    inputs = _checked(speech, text, spans, speech_mask, text_mask, speech_prior, temperature)
    return Alignment(*call_forward(inputs, backend or ""))


def alignment_matrix(
    speech: Tensor,
    text: Tensor,
    spans: tuple[Tensor, Tensor] | None = None,
    speech_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    speech_prior: Tensor | None = None,
    temperature: Temperature = 0.1,
    backend: str | None = None,
) -> Tensor:
    """The matrix A [B, N, M or U] that `align` never forms, to look at: each token's weight on every unit.

    Arguments and errors as for `align`. Rows of real tokens sum to 1 (hard: one at the unit that `align` finds), rows
    of masked tokens, and all of an utterance without a unit, are 0. float32, float64 for float64 inputs. The soft
    alignment is computed in plain PyTorch, whatever the backend.
    """
    backends.check_name(backend)
    inputs = _checked(speech, text, spans, speech_mask, text_mask, speech_prior, temperature)
    temperature = inputs.temperature
    if isinstance(temperature, Tensor):  # a trace that serves every value
        is_soft = temperature > 0
        soft = inputs._replace(temperature=torch.where(is_soft, temperature, 1))
        return torch.where(
            is_soft.to(speech.device),
            reference.BACKEND.soft_alignment_matrix(soft),
            _hard_alignment_matrix(inputs, backend),
        )
    if temperature > 0:
        return reference.BACKEND.soft_alignment_matrix(inputs)
    return _hard_alignment_matrix(inputs, backend)


def _hard_alignment_matrix(inputs: AlignmentInputs, backend: str | None) -> Tensor:
    """One at the unit of each token that takes part."""
    similarity, unit, _ = call_forward(inputs, backend or "")
    return (unit[..., None] == torch.arange(inputs.units, device=unit.device)).to(similarity.dtype)
