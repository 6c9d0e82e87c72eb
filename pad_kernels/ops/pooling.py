"""L1 distance of the pooled embeddings of an utterance's speech and text: the global level."""

import torch

from pad_kernels import backends, checks
from pad_kernels.inputs import accumulator

torch.library.define(
    "pad_kernels::pooled_distance_forward",
    "(Tensor speech, Tensor text, Tensor frame_weights, Tensor token_weights, str backend) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "pad_kernels::pooled_distance_backward",
    "(Tensor grad, Tensor difference, Tensor totals, Tensor frame_weights, Tensor token_weights, ScalarType dtype, "
    "bool need_speech, bool need_text, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def forward(speech, text, frame_weights, token_weights, backend):
    """The op pooled_distance_forward: distance of the pooled rows, their difference, and the sums of the weights."""
    function = backends.serve("pooled_distance_forward", backend, speech.device, speech.dtype)
    return function(speech, text, frame_weights, token_weights)


torch.library.impl("pad_kernels::pooled_distance_forward", "CompositeExplicitAutograd", forward)


@torch.library.register_fake("pad_kernels::pooled_distance_forward")
def _forward_fake(speech, text, frame_weights, token_weights, backend):
    batch, _, width = speech.shape
    difference = speech.new_empty((batch, width), dtype=accumulator(speech.dtype))
    return difference.new_empty(batch), difference, difference.new_empty((batch, 2))


def backward(grad, difference, totals, frame_weights, token_weights, dtype, need_speech, need_text, backend):
    """The op pooled_distance_backward: gradients of speech and text, each empty unless needed."""
    function = backends.serve("pooled_distance_backward", backend, grad.device, dtype)
    return function(grad, difference, totals, frame_weights, token_weights, dtype, need_speech, need_text)


torch.library.impl("pad_kernels::pooled_distance_backward", "CompositeExplicitAutograd", backward)


@torch.library.register_fake("pad_kernels::pooled_distance_backward")
def _backward_fake(grad, difference, totals, frame_weights, token_weights, dtype, need_speech, need_text, backend):
    width = difference.shape[1]
    return (
        grad.new_empty((*frame_weights.shape, width) if need_speech else 0, dtype=dtype),
        grad.new_empty((*token_weights.shape, width) if need_text else 0, dtype=dtype),
    )


def _save(ctx, inputs, output):
    speech, _, frame_weights, token_weights, ctx.backend = inputs
    ctx.dtype = speech.dtype
    ctx.save_for_backward(*output[1:], frame_weights, token_weights)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad, _difference, _totals):
    need_speech, need_text = ctx.needs_input_grad[:2]
    if grad is None or not (need_speech or need_text):
        return (None,) * 5
    grad_speech, grad_text = torch.ops.pad_kernels.pooled_distance_backward.default(
        grad, *ctx.saved_tensors, ctx.dtype, need_speech, need_text, ctx.backend
    )
    return grad_speech if need_speech else None, grad_text if need_text else None, *(None,) * 3


def _no_second_gradient(ctx, *grads):
    raise RuntimeError("pad_kernels: the pooling can be differentiated once; its gradient has no gradient")


torch.library.register_autograd("pad_kernels::pooled_distance_forward", _gradients, setup_context=_save)
torch.library.register_autograd("pad_kernels::pooled_distance_backward", _no_second_gradient)
checks.refuse_vmap("pad_kernels::pooled_distance_forward", "pad_kernels::pooled_distance_backward")
