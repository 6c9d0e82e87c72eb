"""L1 distance of the pooled embeddings of an utterance's speech and text: the global level."""

from typing import Any

import torch
from torch import Tensor

from pad_kernels import backends, checks, registration
from pad_kernels.backends.base import Backend
from pad_kernels.inputs import Gradients, Needed, Pooled, PoolingInputs, opmath_dtype

_INPUTS = "Tensor speech, Tensor text, Tensor frame_weights, Tensor token_weights"
_FORWARD = f"({_INPUTS}, str backend) -> (Tensor, Tensor, Tensor)"
# Speech and text are there for their shapes, and so that a second derivative is refused, not 0.
_BACKWARD = (
    f"(Tensor grad, {_INPUTS}, Tensor difference, Tensor totals, bool need_speech, bool need_text, str backend) "
    "-> (Tensor, Tensor)"
)


def _select(op: str, name: str, inputs: PoolingInputs) -> Backend:
    return backends.select_backend(op, name, inputs.speech.device, inputs.speech.dtype)


def _check_forward(inputs: PoolingInputs) -> None:
    """The inputs of pooled_distance_forward."""
    speech, text, frame_weights, token_weights = inputs
    checks.op_sides(speech, text)
    checks.floating("frame_weights", frame_weights, speech.shape[:2], speech.device)
    checks.floating("token_weights", token_weights, text.shape[:2], speech.device)


def _check_backward(grad: Tensor, inputs: PoolingInputs, saved: Pooled) -> None:
    """The inputs of pooled_distance_backward: as in the forward, and what it gave."""
    _check_forward(inputs)
    batch, _, width = inputs.speech.shape
    dtype, device = opmath_dtype(inputs.speech.dtype), inputs.speech.device
    checks.floating("grad", grad, (batch,), device)
    checks.exactly("difference", saved.difference, dtype, (batch, width), device)
    checks.exactly("totals", saved.totals, dtype, (batch, 2), device)


def _forward(*arguments: Any) -> Pooled:
    *tensors, backend = arguments
    inputs = PoolingInputs(*tensors)
    _check_forward(inputs)
    return _select("pooled_distance_forward", backend, inputs).pooled_distance_forward(inputs)


def _forward_fake(*arguments: Any) -> Pooled:
    speech: Tensor = arguments[0]
    batch, _, width = speech.shape
    difference = speech.new_empty((batch, width), dtype=opmath_dtype(speech.dtype))
    return Pooled(difference.new_empty(batch), difference, difference.new_empty((batch, 2)))


def _backward_arguments(arguments: tuple[Any, ...]) -> tuple[Tensor, PoolingInputs, Pooled, Needed, str]:
    grad, *inputs, difference, totals, need_speech, need_text, backend = arguments
    # The distance itself is not needed.
    return grad, PoolingInputs(*inputs), Pooled(grad, difference, totals), Needed(need_speech, need_text), backend


def _backward(*arguments: Any) -> Gradients:
    grad, inputs, saved, needed, backend = _backward_arguments(arguments)
    _check_backward(grad, inputs, saved)
    chosen = _select("pooled_distance_backward", backend, inputs)
    return chosen.pooled_distance_backward(grad, inputs, saved, needed)


def _backward_fake(*arguments: Any) -> Gradients:
    _, inputs, _, needed, _ = _backward_arguments(arguments)
    return registration.fake_gradients(inputs.speech, inputs.text, needed)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Pooled) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:2]
    if grad is None or not any(needed):
        return (None,) * 5
    grads = torch.ops.pad_kernels.pooled_distance_backward.default(grad, *ctx.saved_tensors, *needed, ctx.backend)
    return *(one if wanted else None for one, wanted in zip(grads, needed)), *(None,) * 3


registration.define("pooled_distance_forward", _FORWARD, _forward, _forward_fake)
registration.define("pooled_distance_backward", _BACKWARD, _backward, _backward_fake)
torch.library.register_autograd("pad_kernels::pooled_distance_forward", _gradients, setup_context=_save)
registration.refuse_vmap("pooled_distance_forward")
registration.differentiate_once("pooled_distance_backward", "the pooling")
