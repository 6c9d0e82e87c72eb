"""The contract of precision: an error of 1e-5 of the value, or, where the value is what is left of a subtraction, of
1e-6 of what was subtracted; for gradients of the soft alignment times 1 / temperature."""

import pytest
import torch
from inputs import relative_error

from pad_kernels import align, alignment_matrix, pad_loss

OF_VALUE, OF_SCALE = 1e-5, 1e-6


def near(width, noise, seed, batch=3, frames=24, tokens=6):
    """Speech that is the text, token by token, but for noise: hardly anything is left of a loss."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, tokens, width, generator=generator)
    speech = text.repeat_interleave(frames // tokens, 1)
    speech = speech * (torch.rand(batch, frames, 1, generator=generator) + 0.5)
    return speech + noise * torch.randn(speech.shape, generator=generator), text


def scales(speech, text, level, temperature):
    """What the loss, and each gradient in norm, are left over from."""
    speech, text = speech.double(), text.double()
    batch, tokens = text.shape[:2]
    if level == "global":
        share = [(values.abs().mean(1).sum(1)).mean() for values in (speech, text)]
        return sum(share), 0.0, 0.0  # each gradient is a sign and a weight: nothing is subtracted
    weights = alignment_matrix(speech, text, temperature=temperature) / (batch * tokens)
    steepness = 2 if temperature == 0 else 2 / temperature
    of_speech = steepness * weights.sum(1) / speech.norm(dim=2)
    of_text = steepness * weights.sum(2) / text.norm(dim=2)
    return 1.0, of_speech.norm(), of_text.norm()


def gradients(speech, text, **options):
    speech, text = speech.detach().requires_grad_(), text.detach().requires_grad_()
    loss = pad_loss(speech, text, **options)
    return loss.detach(), *torch.autograd.grad(loss, (speech, text))


@pytest.mark.parametrize("level, temperature", [("global", 0.1), ("token", 0.0), ("token", 0.02), ("token", 0.1)])
@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("width", [1, 2, 3, 24, 200])
def test_what_a_subtraction_leaves(backend, width, noise, level, temperature):
    for seed in range(2):
        arguments, options = near(width, noise, seed), {"level": level, "temperature": temperature}
        found = gradients(*arguments, **options, backend=backend)
        # The units that this backend took: where several are all but equal, another is as good.
        expected = gradients(*(x.double() for x in arguments), **options, backend="reference")
        if temperature == 0 and level == "token":
            units = [
                align(*x, temperature=0, backend=backend).unit for x in (arguments, [y.double() for y in arguments])
            ]
            if not torch.equal(*units):
                found, expected = found[:1], expected[:1]
        if level == "global" and noise == 0:
            found, expected = found[:1], expected[:1]  # signs of what is only rounding
        for value, correct, scale in zip(found, expected, scales(*arguments, level, temperature)):
            error = (value.double() - correct).norm()
            assert error <= max(OF_VALUE * correct.norm(), OF_SCALE * scale)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("width", [1, 2, 3, 33, 768])
def test_a_cosine_may_exceed_1_by_rounding_alone(backend, width, temperature):
    """It is not clamped: the gradient is that of what was computed."""
    speech, text = near(width, 0.0, seed=1)
    found = align(speech, text, temperature=temperature, backend=backend)
    assert found.similarity.max() <= 1 + OF_SCALE
    assert pad_loss(speech, text, level="token", temperature=temperature, backend=backend) >= -OF_SCALE
    if temperature > 0:
        expected = align(speech.double(), text.double(), temperature=temperature, backend="reference")
        error = (found.log_normalizer - expected.log_normalizer).abs().max()
        assert error <= OF_SCALE / temperature and found.log_normalizer.max() <= (1 + OF_SCALE) / temperature
        assert relative_error(found.similarity, expected.similarity) <= OF_VALUE


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("others", ["equal", "random"])
def test_sums_over_many_frames(native, others, temperature):
    """Equal numbers round the same way each time, in a sum of thousands of them."""
    generator = torch.Generator().manual_seed(0)
    speech = torch.randn(16, 3000, 16, generator=generator)
    text = torch.randn(16, 4, 16, generator=generator)
    if others == "equal":
        speech[:, 1:] = speech[:, 1:2].clone()
    options = {"level": "token", "temperature": temperature}
    found = gradients(speech, text, **options, backend=native)
    expected = gradients(speech.double(), text.double(), **options, backend="reference")
    assert all(relative_error(one, other) < OF_VALUE for one, other in zip(found, expected))
