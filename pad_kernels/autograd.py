"""The one definition of each loss's gradient, eager and compiled alike.

A loss is one node of the autograd graph. Outside torch.compile it calls its backend directly: the dispatcher, and a
node for each small operation after the kernels, would take longer than the kernels of a small batch do. Inside
torch.compile, and wherever else operators are traced, transformed or watched, it calls the registered ops.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_kernels import backends, torch_internals
from pad_kernels.backends.base import Backend
from pad_kernels.inputs import (
    AlignmentInputs,
    Gradients,
    LossInputs,
    LossSaved,
    Needed,
    Pooled,
    PoolingInputs,
    Saved,
    SpanInputs,
)
from pad_kernels.ops import alignment, pooling, spans  # noqa: F401  (they register the ops)

_OPS = torch.ops.pad_kernels


class RegisteredOps(Backend):
    """The registered ops, which choose among the backends by `name` themselves; the steps around them in PyTorch."""

    def __init__(self, name: str):
        self.name = name

    def alignment_forward(self, inputs: AlignmentInputs) -> Saved:
        """torch.ops.pad_kernels.alignment_forward"""
        return Saved(*_OPS.alignment_forward.default(*inputs, self.name))

    def alignment_backward(
        self, grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed
    ) -> Gradients:
        """torch.ops.pad_kernels.alignment_backward"""
        grads: Gradients = _OPS.alignment_backward.default(grad_similarity, *inputs, *saved, *needed, self.name)
        return grads

    def select_spans(self, inputs: SpanInputs) -> tuple[Tensor, Tensor]:
        """torch.ops.pad_kernels.select_spans"""
        name = backends.name_for("select_spans", self.name)
        bounds: tuple[Tensor, Tensor] = _OPS.select_spans.default(*inputs, name)
        return bounds

    def pooled_distance_forward(self, inputs: PoolingInputs) -> Pooled:
        """torch.ops.pad_kernels.pooled_distance_forward"""
        return Pooled(*_OPS.pooled_distance_forward.default(*inputs, self.name))

    def pooled_distance_backward(self, grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
        """torch.ops.pad_kernels.pooled_distance_backward"""
        _, difference, totals = saved
        grads: Gradients = _OPS.pooled_distance_backward.default(grad, *inputs, difference, totals, *needed, self.name)
        return grads


class LossOptions(NamedTuple):
    """What a loss is told besides its tensors."""

    temperature: float
    reduction: str
    backend: Backend
    differentiable: bool
    scratch: Tensor | None

    def inputs(
        self,
        speech: Tensor,
        text: Tensor,
        frame_prior: Tensor,
        token_prior: Tensor,
        start: Tensor | None,
        end: Tensor | None,
    ) -> LossInputs:
        """The tensors with these options."""
        tensors = speech, text, frame_prior, token_prior, start, end
        return LossInputs(*tensors, self.temperature, self.reduction, self.differentiable, self.scratch)


def _save(ctx: Any, inputs: LossInputs, saved: LossSaved, backend: Backend) -> None:
    """Keeps tensors where autograd's hooks see them, and the rest on `ctx`."""
    ctx.backend, ctx.temperature, ctx.reduction = backend, inputs.temperature, inputs.reduction
    scale = saved.grad_scale
    ctx.grad_scale = None if isinstance(scale, Tensor) else scale
    ctx.own = len(saved.own)
    ctx.save_for_backward(*inputs[:6], scale if isinstance(scale, Tensor) else None, *saved.own, *saved.tensors)


def _restore(ctx: Any, grad: Tensor) -> tuple[Backend, LossInputs, LossSaved, Needed]:
    speech, text, frame_prior, token_prior, start, end, scale, *tensors = ctx.saved_tensors
    inputs = LossInputs(speech, text, frame_prior, token_prior, start, end, ctx.temperature, ctx.reduction)
    backend: Backend = ctx.backend
    # The registered op is the one that says that it has no gradient, and that knows of batches of gradients.
    if (
        torch.is_grad_enabled()
        or torch_internals.is_batch_of_gradients(grad)
        or not torch_internals.can_bypass_dispatcher(grad)
    ):
        backend = RegisteredOps(backend.name)
    grad_scale = ctx.grad_scale if scale is None else scale
    saved = LossSaved(tuple(tensors[ctx.own :]), grad_scale, tuple(tensors[: ctx.own]))
    return backend, inputs, saved, Needed(*ctx.needs_input_grad[:2])


def _asked_for(grads: Gradients, needed: Needed) -> tuple[Tensor | None, Tensor | None]:
    return grads[0] if needed.speech else None, grads[1] if needed.text else None


class LocalLoss(torch.autograd.Function):
    """sum_j q_j (1 - similarity_j), reduced over the batch: the token and the span level."""

    @staticmethod
    def forward(
        ctx: Any,
        speech: Tensor,
        text: Tensor,
        frame_prior: Tensor,
        token_prior: Tensor,
        start: Tensor | None,
        end: Tensor | None,
        options: LossOptions,
    ) -> Tensor:
        """The loss; tensors as in LossInputs."""
        inputs = options.inputs(speech, text, frame_prior, token_prior, start, end)
        loss, saved = options.backend.local_loss_forward(inputs)
        _save(ctx, inputs, saved, options.backend)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of speech and text."""
        backend, inputs, saved, needed = _restore(ctx, grad)
        grads = backend.local_loss_backward(grad, inputs, saved, needed)
        return *_asked_for(grads, needed), None, None, None, None, None


class GlobalLoss(torch.autograd.Function):
    """|| sum_i p_i s_i - sum_j q_j t_j ||_1, reduced over the batch."""

    @staticmethod
    def forward(
        ctx: Any, speech: Tensor, text: Tensor, frame_prior: Tensor, token_prior: Tensor, options: LossOptions
    ) -> Tensor:
        """The loss; tensors as in LossInputs."""
        inputs = options.inputs(speech, text, frame_prior, token_prior, None, None)
        loss, saved = options.backend.global_loss_forward(inputs)
        _save(ctx, inputs, saved, options.backend)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of speech and text."""
        backend, inputs, saved, needed = _restore(ctx, grad)
        grads = backend.global_loss_backward(grad, inputs, saved, needed)
        return *_asked_for(grads, needed), None, None, None
