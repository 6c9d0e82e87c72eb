"""L1 distance of the pooled embeddings of an utterance's speech and text: the global level."""

from typing import Any

import torch
from torch import Tensor

from pad_kernels import backends, checks
from pad_kernels.backends.base import Backend
from pad_kernels.inputs import Gradients, Needed, Pooled, PoolingInputs, opmath_dtype
from pad_kernels.ops import registration

_INPUTS = "Tensor speech, Tensor text, Tensor frame_weights, Tensor token_weights"
_FORWARD = f"({_INPUTS}, str backend) -> (Tensor, Tensor, Tensor)"
# Speech and text are there for their shapes, and so that a second derivative is refused, not 0.
_BACKWARD = (
    f"(Tensor grad, {_INPUTS}, Tensor difference, Tensor totals, bool need_speech, bool need_text, str backend) "
    "-> (Tensor, Tensor)"
)


def _select(op: str, name: str, inputs: PoolingInputs) -> Backend:
    return backends.select_backend(op, name, inputs.speech.device, inputs.speech.dtype)


def _forward(*arguments: Any) -> Pooled:
    *tensors, backend = arguments
    inputs = PoolingInputs(*tensors)
    checks.pooling_op(inputs)
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
    checks.pooling_backward_op(grad, inputs, saved)
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
