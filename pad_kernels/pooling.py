"""L1 distance of the pooled embeddings of an utterance's speech and text: the global level."""

import torch
from torch import Tensor

from pad_kernels import backends, checks

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


@torch.library.impl("pad_kernels::pooled_distance_forward", "CompositeExplicitAutograd")
def _forward(speech, text, frame_weights, token_weights, backend):
    function = backends.serve("pooled_distance_forward", backend, speech.device, speech.dtype)
    return function(speech, text, frame_weights, token_weights)


@torch.library.register_fake("pad_kernels::pooled_distance_forward")
def _forward_fake(speech, text, frame_weights, token_weights, backend):
    batch, _, width = speech.shape
    difference = speech.new_empty((batch, width), dtype=checks.accumulator(speech.dtype))
    return difference.new_empty(batch), difference, difference.new_empty((batch, 2))


@torch.library.impl("pad_kernels::pooled_distance_backward", "CompositeExplicitAutograd")
def _backward(grad, difference, totals, frame_weights, token_weights, dtype, need_speech, need_text, backend):
    function = backends.serve("pooled_distance_backward", backend, grad.device, dtype)
    return function(grad, difference, totals, frame_weights, token_weights, dtype, need_speech, need_text)


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


def pooled_distance(
    speech: Tensor, text: Tensor, frame_weights: Tensor, token_weights: Tensor, backend: str = ""
) -> tuple[Tensor, Tensor]:
    """sum_d |sum_i p_i s_id - sum_j q_j t_jd| [B], and which utterances [B] have weight on both sides.

    speech [B, M, D] and text [B, N, D] of one floating-point dtype; p and q are the weights [B, M] and [B, N] over
    their sum: float32 (float64 for float64 embeddings), at least 0, constants for the gradient. Rows of weight 0 are
    not read. The distance is in the dtype of the weights, 0 without weight on both sides.
    """
    distance, _, totals = torch.ops.pad_kernels.pooled_distance_forward.default(
        speech, text, frame_weights, token_weights, backend
    )
    return distance, (totals > 0).all(1)
