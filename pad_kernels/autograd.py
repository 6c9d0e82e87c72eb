"""The losses outside torch.compile: each one node of the autograd graph that calls its kernels directly.

The dispatcher, and a node for each small operation after the kernels, would take longer than the kernels of a small
batch do. Inside torch.compile, and wherever else operators are recorded, the losses are made of the registered ops.
"""

import torch

from pad_kernels import backends
from pad_kernels.backends import reference
from pad_kernels.ops import alignment, pooling


class LocalLoss(torch.autograd.Function):
    """sum_j q_j (1 - similarity_j), reduced over the batch: the token and the span level."""

    @staticmethod
    def forward(ctx, speech, text, frame_prior, token_prior, start, end, temperature, reduction, backend):
        inputs = speech, text, frame_prior, token_prior > 0, start, end
        outputs = alignment.forward(*inputs, temperature, backend)
        similarity, unit, _ = outputs
        helpers = backends.compiled(backend, speech.device) or reference
        loss, ctx.share = helpers.token_loss(similarity, unit, token_prior, reduction)
        ctx.save_for_backward(token_prior, *inputs, *outputs)
        ctx.temperature, ctx.backend = temperature, backend
        return loss

    @staticmethod
    def backward(ctx, grad):
        token_prior, *inputs, similarity, unit, log_normalizer = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        grad = grad * -ctx.share
        grad_similarity = token_prior * (grad[:, None] if grad.dim() else grad)
        # The registered op is the one that says that it has no gradient.
        run = torch.ops.pad_kernels.alignment_backward if torch.is_grad_enabled() else alignment.backward
        grads = run(grad_similarity, *inputs, ctx.temperature, similarity, unit, log_normalizer, *needed, ctx.backend)
        return *(one if wanted else None for one, wanted in zip(grads, needed)), *(None,) * 7


class GlobalLoss(torch.autograd.Function):
    """|| sum_i p_i s_i - sum_j q_j t_j ||_1, reduced over the batch."""

    @staticmethod
    def forward(ctx, speech, text, frame_weights, token_weights, reduction, backend):
        distance, difference, totals = pooling.forward(speech, text, frame_weights, token_weights, backend)
        helpers = backends.compiled(backend, speech.device) or reference
        loss, ctx.share = helpers.pooled_loss(distance, totals, reduction)
        ctx.save_for_backward(difference, totals, frame_weights, token_weights)
        ctx.dtype, ctx.backend = speech.dtype, backend
        return loss

    @staticmethod
    def backward(ctx, grad):
        needed = ctx.needs_input_grad[:2]
        saved = ctx.saved_tensors
        grad = (grad * ctx.share).expand(saved[0].shape[0])
        run = torch.ops.pad_kernels.pooled_distance_backward if torch.is_grad_enabled() else pooling.backward
        grads = run(grad, *saved, ctx.dtype, *needed, ctx.backend)
        return *(one if wanted else None for one, wanted in zip(grads, needed)), *(None,) * 4
