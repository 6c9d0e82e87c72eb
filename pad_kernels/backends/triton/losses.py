"""The losses in few launches: one prepares weights and spans, one to three align or pool, and the last reduces.

Forward: prepare, (pool the spans,) score and reduce; global: prepare, difference and reduce.
Backward: soft weights, text and units, or the hard gradients, (spread to the frames); global: one.
"""

from torch import Tensor

from pad_kernels.backends.triton import pooling
from pad_kernels.backends.triton.common import rows
from pad_kernels.backends.triton.gradients import gradients
from pad_kernels.backends.triton.scores import Scored, is_empty, outcome, score, unfinished
from pad_kernels.backends.triton.token_gradients import TokenGradient
from pad_kernels.inputs import Gradients, LossInputs, LossSaved, Needed, Saved


def finished(inputs: LossInputs) -> Tensor:
    """Zeros that programs count up as they end: made with the weights, or now."""
    return unfinished(inputs.speech.shape[0], inputs.speech.device) if inputs.scratch is None else inputs.scratch


def local_loss_forward(inputs: LossInputs) -> tuple[Tensor, LossSaved] | None:
    """The loss of the token and span levels; None where there is no unit or no token."""
    if is_empty(inputs.speech, inputs.text, inputs.start):
        return None
    spans = (x if x is None else x.contiguous() for x in (inputs.start, inputs.end))
    token_prior = inputs.token_prior.contiguous()
    filled = outcome(inputs.text, finished(inputs), inputs.reduction)
    scored = score(
        rows(inputs.speech), rows(inputs.text), inputs.frame_prior.contiguous(), token_prior, *spans,
        inputs.temperature, inputs.differentiable and inputs.temperature > 0, filled, inputs.reduction,
    )  # fmt: skip
    # Frames are kept as the speech itself.
    own = (None if inputs.start is None else scored.units, *scored[1:])
    return filled.loss, LossSaved((None, *filled[:3]), filled.grad_scale, own)


def local_loss_backward(grad: Tensor, inputs: LossInputs, saved: LossSaved, needed: Needed) -> Gradients:
    """Gradients of speech and text."""
    units, *others = saved.own
    scored = Scored(rows(inputs.speech) if units is None else units, *others)
    token_prior = inputs.token_prior.contiguous()
    of_tokens = TokenGradient(None, grad, grad.stride(0) if grad.dim() else 0, saved.grad_scale, token_prior)
    spans = None if inputs.start is None else (inputs.start.contiguous(), inputs.end.contiguous())
    frame_prior = inputs.frame_prior.contiguous()
    return gradients(
        of_tokens, scored, rows(inputs.text), Saved(*saved.tensors[1:]), spans, frame_prior, inputs.temperature, needed
    )


def global_loss_forward(inputs: LossInputs) -> tuple[Tensor, LossSaved] | None:
    """The loss of the global level; None where there is no utterance."""
    if inputs.speech.shape[0] == 0:
        return None
    found, totals, loss, grad_scale = pooling.distance(inputs.pooling(), finished(inputs), inputs.reduction)
    return loss, LossSaved((found, totals), grad_scale)


def global_loss_backward(grad: Tensor, inputs: LossInputs, saved: LossSaved, needed: Needed) -> Gradients:
    """Gradients of speech and text."""
    grad_scale = saved.grad_scale if isinstance(saved.grad_scale, Tensor) else None
    return pooling.gradients(grad, grad_scale, inputs.pooling(), *saved.tensors, needed)
