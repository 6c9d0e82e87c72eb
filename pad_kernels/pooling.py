"""L1 distance of the pooled embeddings of an utterance's speech and text: the global level."""

import torch
from torch import Tensor

from pad_kernels import backends, checks

torch.library.define(
    "pad_kernels::pooled_distance_forward",
    "(Tensor speech, Tensor text, Tensor frame_weights, Tensor token_weights, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "pad_kernels::pooled_distance_backward",
    "(Tensor grad, Tensor difference, Tensor frame_weights, Tensor token_weights, ScalarType dtype, "
    "bool need_speech, bool need_text, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("pad_kernels::pooled_distance_forward", "CompositeExplicitAutograd")
def _forward(speech, text, frame_weights, token_weights, backend):
    pool = backends.serve("pooling_forward", backend, speech.device, speech.dtype)
    difference = pool(speech, frame_weights) - pool(text, token_weights)
    return difference.abs().sum(1), difference


@torch.library.register_fake("pad_kernels::pooled_distance_forward")
def _forward_fake(speech, text, frame_weights, token_weights, backend):
    difference = speech.new_empty((speech.shape[0], speech.shape[2]), dtype=checks.accumulator(speech.dtype))
    return difference.new_empty(speech.shape[0]), difference


@torch.library.impl("pad_kernels::pooled_distance_backward", "CompositeExplicitAutograd")
def _backward(grad, difference, frame_weights, token_weights, dtype, need_speech, need_text, backend):
    spread = backends.serve("pooling_backward", backend, grad.device, dtype)
    grad_pooled = grad[:, None] * difference.sign()
    empty = grad.new_empty(0, dtype=dtype)
    return (
        spread(grad_pooled, frame_weights, dtype) if need_speech else empty,
        spread(-grad_pooled, token_weights, dtype) if need_text else empty.clone(),
    )


@torch.library.register_fake("pad_kernels::pooled_distance_backward")
def _backward_fake(grad, difference, frame_weights, token_weights, dtype, need_speech, need_text, backend):
    width = difference.shape[1]
    return (
        grad.new_empty((*frame_weights.shape, width) if need_speech else 0, dtype=dtype),
        grad.new_empty((*token_weights.shape, width) if need_text else 0, dtype=dtype),
    )


def _save(ctx, inputs, output):
    speech, _, frame_weights, token_weights, ctx.backend = inputs
    ctx.dtype = speech.dtype
    ctx.save_for_backward(output[1], frame_weights, token_weights)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad, _difference):
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


def pooled_distance(
    speech: Tensor, text: Tensor, frame_weights: Tensor, token_weights: Tensor, backend: str = ""
) -> Tensor:
    """sum_d |sum_i p_i s_id - sum_j q_j t_jd| [B].

    speech [B, M, D] and text [B, N, D] of one floating-point dtype; weights p [B, M] and q [B, N] float32 (float64 for
    float64 embeddings), constants for the gradient; rows of weight 0 are not read. In the dtype of the weights.
    """
    return torch.ops.pad_kernels.pooled_distance_forward.default(speech, text, frame_weights, token_weights, backend)[0]
