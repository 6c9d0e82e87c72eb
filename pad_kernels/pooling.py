"""Weighted sums over the rows of each utterance: the pooling of the global level."""

import torch
from torch import Tensor

from pad_kernels import backends, checks

torch.library.define(
    "pad_kernels::pooling_forward",
    "(Tensor values, Tensor weights, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "pad_kernels::pooling_backward",
    "(Tensor grad, Tensor weights, ScalarType dtype, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("pad_kernels::pooling_forward", "CompositeExplicitAutograd")
def _forward(values, weights, backend):
    return backends.serve("pooling_forward", backend, values.device, values.dtype)(values, weights)


@torch.library.register_fake("pad_kernels::pooling_forward")
def _forward_fake(values, weights, backend):
    return values.new_empty((values.shape[0], values.shape[2]), dtype=checks.accumulator(values.dtype))


@torch.library.impl("pad_kernels::pooling_backward", "CompositeExplicitAutograd")
def _backward(grad, weights, dtype, backend):
    return backends.serve("pooling_backward", backend, grad.device, dtype)(grad, weights, dtype)


@torch.library.register_fake("pad_kernels::pooling_backward")
def _backward_fake(grad, weights, dtype, backend):
    return grad.new_empty((*weights.shape, grad.shape[1]), dtype=dtype)


def _save(ctx, inputs, output):
    values, weights, ctx.backend = inputs
    ctx.dtype = values.dtype
    ctx.save_for_backward(weights)


def _gradient(ctx, grad):
    (weights,) = ctx.saved_tensors
    return torch.ops.pad_kernels.pooling_backward.default(grad, weights, ctx.dtype, ctx.backend), None, None


def _no_second_gradient(ctx, grad):
    raise RuntimeError("pad_kernels: the pooling can be differentiated once; its gradient has no gradient")


torch.library.register_autograd("pad_kernels::pooling_forward", _gradient, setup_context=_save)
torch.library.register_autograd("pad_kernels::pooling_backward", _no_second_gradient)
checks.refuse_vmap("pad_kernels::pooling_forward", "pad_kernels::pooling_backward")


def pool(values: Tensor, weights: Tensor, backend: str = "") -> Tensor:
    """sum_l weights_l values_l.

    values [B, L, D] floating point; weights [B, L] float32 (float64 for float64 values), constants for the
    gradient; rows of weight 0 are not read. Returns [B, D] in the dtype of the weights.
    """
    return torch.ops.pad_kernels.pooling_forward.default(values, weights, backend)
