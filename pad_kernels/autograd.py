"""The one definition of each loss's gradient, eager and compiled alike.

A loss is one node of the autograd graph. Outside torch.compile it calls its backend directly: the dispatcher, and a
node for each small operation after the kernels, would take longer than the kernels of a small batch do. Inside
torch.compile, and wherever else operators are traced, transformed or watched, it calls the registered ops.
"""

from typing import Any

import torch
from torch import Tensor

from pad_kernels import torch_internals
from pad_kernels.backends.base import Backend
from pad_kernels.inputs import (
    AlignmentInputs,
    Gradients,
    LossRecord,
    LossRequest,
    Needed,
    Pooled,
    PoolingInputs,
    Saved,
    SpanInputs,
)
from pad_kernels.ops import alignment, pooling, spans  # noqa: F401  (they register ops)

_OPS = torch.ops.pad_kernels


class RegisteredOps(Backend):
    """The registered ops, which choose among the backends by `name` themselves; the steps around them in PyTorch."""

    def __init__(self, name: str):
        self.name = name

    def alignment_forward(self, inputs: AlignmentInputs) -> Saved:
        """torch.ops.pad_kernels.alignment_forward"""
        return alignment.call_forward(inputs, self.name)

    def alignment_backward(
        self, grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed
    ) -> Gradients:
        """torch.ops.pad_kernels.alignment_backward"""
        return alignment.call_backward(grad_similarity, inputs, saved, needed, self.name)

    def select_spans(self, inputs: SpanInputs) -> tuple[Tensor, Tensor]:
        """torch.ops.pad_kernels.select_spans"""
        bounds: tuple[Tensor, Tensor] = _OPS.select_spans.default(*inputs, self.name)
        return bounds

    def pooled_distance_forward(self, inputs: PoolingInputs) -> Pooled:
        """torch.ops.pad_kernels.pooled_distance_forward"""
        return Pooled(*_OPS.pooled_distance_forward.default(*inputs, self.name))

    def pooled_distance_backward(self, grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
        """torch.ops.pad_kernels.pooled_distance_backward"""
        _, difference, totals = saved
        grads: Gradients = _OPS.pooled_distance_backward.default(grad, *inputs, difference, totals, *needed, self.name)
        return grads


class Loss(torch.autograd.Function):
    """The loss of any level, reduced over the batch."""

    @staticmethod
    def forward(ctx: Any, speech: Tensor, text: Tensor, request: LossRequest, backend: Backend) -> Tensor:
        """The loss; speech and text are those of the request, named so that autograd sees them."""
        loss, record = backend.loss_forward(request)
        ctx.save_for_backward(speech, text, *record.tensors)
        ctx.rest = backend, record.options, record.form
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of speech and text."""
        backend: Backend
        backend, options, form = ctx.rest
        speech, text, *tensors = ctx.saved_tensors
        record = LossRecord(speech, text, options, tuple(tensors), form)
        need_speech, need_text, *_ = ctx.needs_input_grad
        # The registered op is the one that says that it has no gradient, and that knows of batches of gradients.
        if (
            torch.is_grad_enabled()
            or torch_internals.is_batch_of_gradients(grad)
            or not torch_internals.can_bypass_dispatcher(grad)
        ):
            record, backend = backend.unpack(record), RegisteredOps(backend.name)
        grad_speech, grad_text = backend.loss_backward(grad, record, Needed(need_speech, need_text))
        return grad_speech if need_speech else None, grad_text if need_text else None, None, None
