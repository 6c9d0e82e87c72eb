"""The pooled distance of every backend against the float64 reference, and against autograd of its definition."""

import pytest
import torch
from inputs import KINDS, make_inputs, relative_error

from pad_kernels import backends
from pad_kernels.backends.reference import BACKEND as reference
from pad_kernels.inputs import Needed, PoolingInputs

BAR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def pooled_distance(*arguments):
    """The distances [B], and which utterances have weight on both sides."""
    distance, _, totals = torch.ops.pad_kernels.pooled_distance_forward(*arguments)
    return distance, (totals > 0).all(1)


def make(batch, frames, tokens, width, scale=1.0, **options):
    """speech, text and the weights of their rows, summing to anything."""
    inputs = make_inputs(batch, frames, tokens, width, **options)
    token_weights = torch.linspace(0.5, 2, tokens, dtype=inputs.frame_weights.dtype) * inputs.token_mask
    return inputs.speech, inputs.text, scale * inputs.frame_weights, scale * token_weights


def check(speech, text, frame_weights, token_weights, backend):
    weights = frame_weights, token_weights
    forward, backward = (
        backends.select_backend(f"pooled_distance_{way}", backend, speech.device, speech.dtype)
        for way in ("forward", "backward")
    )
    inputs = PoolingInputs(speech, text, *weights)
    found = forward.pooled_distance_forward(inputs)
    wide = PoolingInputs(*(tensor.double() for tensor in inputs))
    expected = reference.pooled_distance_forward(wide)
    bar = BAR[speech.dtype]
    for one, other in zip(found, expected):
        assert one.dtype == frame_weights.dtype and one.shape == other.shape
        assert relative_error(one, other) <= bar

    grad = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(1), dtype=frame_weights.dtype)
    # The signs of the backend's own differences: one that is about 0 may come out on either side.
    saved = expected._replace(difference=found.difference.double())
    truth = reference.pooled_distance_backward(grad.double(), wide, saved, Needed(True, True))
    for needed in ((True, True), (True, False), (False, True)):
        gradients = backward.pooled_distance_backward(grad, inputs, found, Needed(*needed))
        for need, one, other, weight in zip(needed, gradients, truth, weights):
            assert one.dtype == speech.dtype
            if not need:
                assert one.numel() == 0
                continue
            assert relative_error(one, other) <= bar
            assert (one[weight == 0] == 0).all()


@pytest.mark.parametrize("dtype", BAR, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 1, 3, 7), (3, 49, 5, 33), (2, 400, 70, 100), (2, 90, 20, 768)], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(backend, kind, shape, dtype):
    check(*make(*shape, kind=kind, dtype=dtype, seed=shape[1]), backend)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_weights_of_any_scale(backend, scale):
    check(*make(3, 100, 12, 24, scale=scale), backend)


def test_layouts(backend):
    speech, text, *weights = make(3, 40, 10, 24)
    moved = (values.transpose(0, 1).contiguous().transpose(0, 1) for values in (speech, text))
    check(*moved, *weights, backend)
    check(speech.mT.contiguous().mT, text.mT.contiguous().mT, *weights, backend)
    fewer = [weight[:, ::step] for weight, step in zip(weights, (3, 2))]
    check(speech[:, ::3, 1::2], text[:, ::2, 1::2], *fewer, backend)
    check(*(values[:1].nan_to_num(0).expand(3, -1, 24) for values in (speech, text)), *weights, backend)


@pytest.mark.parametrize("batch, frames, tokens", [(0, 5, 5), (2, 0, 3), (2, 3, 0), (2, 0, 0)])
def test_empty_dimensions(backend, batch, frames, tokens):
    speech, text = (torch.randn(batch, length, 4, requires_grad=True) for length in (frames, tokens))
    distance, real = pooled_distance(speech, text, torch.rand(batch, frames), torch.rand(batch, tokens), backend)
    distance.sum().backward()
    assert distance.shape == (batch,) and (distance == 0).all() and not real.any()
    for values in (speech, text):
        assert values.grad.shape == values.shape and (values.grad == 0).all()


def test_a_side_without_weight_counts_for_nothing(backend):
    speech, text, frame_weights, token_weights = make(3, 70, 9, 8, kind="full")
    frame_weights[1], token_weights[2] = 0, 0
    speech[1], text[2] = torch.nan, torch.nan
    speech.requires_grad_(), text.requires_grad_()
    distance, real = pooled_distance(speech, text, frame_weights, token_weights, backend)
    (distance * torch.tensor([1.0, torch.inf, torch.nan])).nansum().backward()
    assert real.tolist() == [True, False, False] and distance[0] > 0 and (distance[1:] == 0).all()
    for values in (speech, text):
        assert (values.grad[0] != 0).any() and (values.grad[1:] == 0).all()


def test_nan_at_a_row_that_counts_is_not_hidden(backend):
    speech, text, *weights = make(2, 70, 9, 8, kind="full")
    speech[0, 3, 5] = torch.nan
    speech.requires_grad_()
    distance, _ = pooled_distance(speech, text, *weights, backend)
    distance.sum().backward()
    assert distance.isnan().tolist() == [True, False]
    assert speech.grad[0, :, 5].isnan().all() and not speech.grad[1].isnan().any()


@pytest.mark.parametrize("dtype", BAR, ids=lambda dtype: str(dtype)[6:])
def test_distance_and_its_gradients(backend, dtype):
    *values, frame_weights, token_weights = make(3, 60, 9, 24, kind="holes", dtype=dtype)
    weights = frame_weights, token_weights
    values = [value.requires_grad_() for value in values]
    grad = torch.tensor([1.0, -2.0, 0.5], dtype=frame_weights.dtype)
    found, real = pooled_distance(*values, *weights, backend)
    gradients = torch.autograd.grad(found, values, grad)
    wide = [value.detach().double().nan_to_num(0).requires_grad_() for value in values]
    weights = [weight.double() / weight.double().sum(1, keepdim=True) for weight in weights]
    pooled = [(weight[..., None] * value).sum(1) for weight, value in zip(weights, wide)]
    expected = (pooled[0] - pooled[1]).abs().sum(1)
    assert found.dtype == frame_weights.dtype and real.all()
    assert relative_error(found, expected) <= BAR[dtype]
    for one, other in zip(gradients, torch.autograd.grad(expected, wide, grad.double())):
        assert one.dtype == dtype and relative_error(one, other) <= BAR[dtype]
