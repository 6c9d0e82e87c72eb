"""The token-max level: its value by the definition, its gradient by autograd through `align`, eager and compiled."""

import pytest
import torch
from inputs import KINDS, relative_error
from test_loss import make, run

from pad_kernels import PADLoss, align, pad_loss


def expected(arguments, temperature):
    """The mean over the utterances that count of the highest distance, in float64, by autograd."""
    speech, text, speech_mask, text_mask, speech_prior, text_prior = arguments
    speech, text = (x.detach().double().requires_grad_() for x in (speech, text))
    tokens = text_mask & (text_prior.nan_to_num() > 0)
    found = align(speech, text, None, speech_mask, tokens, speech_prior.double(), temperature, backend="reference")
    losses = [(1 - row[valid]).max() for row, valid in zip(found.similarity, found.unit >= 0) if valid.any()]
    loss = torch.stack(losses).mean() if losses else (found.similarity * 0).sum()
    return loss, *torch.autograd.grad(3 * loss, (speech, text))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients(backend, kind, temperature):
    arguments = make(kind=kind)
    found = run(arguments, level="token-max", temperature=temperature, backend=backend)
    for value, correct in zip(found, expected(arguments, temperature)):
        assert relative_error(value, correct) <= 1e-5


@pytest.mark.parametrize("shape", [(0, 8, 4), (2, 0, 4), (2, 8, 0)])
def test_a_batch_without_anything_is_zero(backend, shape):
    loss, *grads = run(make(*shape, kind="all_empty"), level="token-max", backend=backend)
    assert loss == 0 and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled(reduction):
    arguments = make()
    loss = PADLoss("token-max", reduction=reduction)

    def gradients(function):
        speech, text = (x.detach().requires_grad_() for x in arguments[:2])
        value = function(speech, text, *arguments[2:])
        return value, *torch.autograd.grad(value.sum(), (speech, text))

    compiled = gradients(torch.compile(loss, fullgraph=True))
    for one, other in zip(gradients(loss), compiled):
        assert relative_error(other, one) <= 1e-6


def test_a_better_token_changes_nothing():
    """Only the worst token counts, so only it gets a gradient."""
    arguments = make(kind="full")
    _, _, grad_text = run(arguments, level="token-max")
    assert (grad_text.abs().sum(2) > 0).sum(1).tolist() == [1, 1, 1]
    assert pad_loss(*arguments, level="token-max") > pad_loss(*arguments, level="token")
