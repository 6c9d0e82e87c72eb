"""What is called when a provider is checked, timed, or its memory measured."""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from .cases import Case, Inputs, make_inputs
from .providers import Loss, Provider, make_provider, reference

# Largest relative error of the loss, and of each gradient in norm, against float64 on the same inputs.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


def make_call(provider: Provider, inputs: Inputs, case: Case) -> Callable[[], object]:
    """The loss without a graph, or the loss and fresh gradients of speech and text."""
    loss, inputs = provider.loss, provider.prepare(inputs)
    if not case.backward:

        def forward():
            with torch.no_grad():
                return loss(inputs, case.level, case.temperature)

        return forward
    leaves = inputs._replace(speech=inputs.speech.clone().requires_grad_(), text=inputs.text.clone().requires_grad_())

    def forward_backward():
        return torch.autograd.grad(loss(leaves, case.level, case.temperature), (leaves.speech, leaves.text))

    return forward_backward


def value_and_gradients(loss: Loss, inputs: Inputs, case: Case) -> tuple[Tensor, ...]:
    """Loss, gradient of speech, gradient of text."""
    leaves = inputs._replace(speech=inputs.speech.clone().requires_grad_(), text=inputs.text.clone().requires_grad_())
    value = loss(leaves, case.level, case.temperature)
    return value.detach(), *torch.autograd.grad(value, (leaves.speech, leaves.text))


def truth(
    inputs: Inputs, case: Case, definition: Loss = reference, utterances: int | None = None
) -> tuple[Tensor, ...]:
    """Loss and gradients in float64; so many `utterances` at a time where memory is short (None: all)."""
    if utterances is None:
        return value_and_gradients(definition, inputs.double(), case)
    batch = inputs.speech.shape[0]
    parts = []
    for first in range(0, batch, utterances):
        part = Inputs(*(None if x is None else x[first : first + utterances] for x in inputs))
        # Every utterance of a case has a token and a unit, so the loss is the mean over all of them.
        share = part.speech.shape[0] / batch
        parts.append([share * x for x in value_and_gradients(definition, part.double(), case)])
    losses, *gradients = zip(*parts, strict=True)
    return torch.stack(losses).sum(), *(torch.cat(x) for x in gradients)


def errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    """Relative errors in norm of the loss and of both gradients."""
    names = ("loss", "grad_speech", "grad_text")
    return {name: _error(f, e) for name, f, e in zip(names, found, expected, strict=True)}


def error_alone(loss: Loss, inputs: Inputs, case: Case, expected: Tensor) -> dict[str, float]:
    """The relative error of the loss without a graph, which may be computed in another way."""
    with torch.no_grad():
        return {"loss_alone": _error(loss(inputs, case.level, case.temperature), expected)}


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-300))


def within_tolerance(error: dict[str, float], dtype: str) -> bool:
    """Whether the loss, with a graph and without, and both gradients are right; NaN is not."""
    return all(value <= TOLERANCES[dtype] for value in error.values())


def workload(provider: str, case: dict) -> Callable[[], object]:
    """The call to measure, from the plain data a child process is given."""
    case = Case(**{field.name: case[field.name] for field in fields(Case)})
    torch._dynamo.reset()
    return make_call(make_provider(provider, "cpu"), make_inputs(case), case)
