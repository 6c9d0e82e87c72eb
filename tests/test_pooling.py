"""The pooling ops of every backend against the float64 reference."""

import pytest
import torch
from inputs import KINDS, make_inputs, relative_error

from pad_kernels import backends, reference
from pad_kernels.pooling import pooled_distance

BAR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def check(values, weights, backend):
    pool, spread = (
        backends.serve(op, backend, values.device, values.dtype) for op in ("pooling_forward", "pooling_backward")
    )
    found = pool(values, weights)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    grad_values = spread(grad, weights, values.dtype)
    assert found.dtype == weights.dtype and grad_values.dtype == values.dtype
    bar = BAR[values.dtype]
    assert relative_error(found, reference.pooling_forward(values.double(), weights.double())) <= bar
    expected = reference.pooling_backward(grad.double(), weights.double(), torch.float64)
    assert relative_error(grad_values, expected) <= bar
    assert (grad_values[weights == 0] == 0).all()


@pytest.mark.parametrize("dtype", BAR, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (3, 49, 33), (2, 400, 100), (2, 90, 768)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(backend, kind, shape, dtype):
    batch, length, width = shape
    inputs = make_inputs(batch, length, 1, width, kind=kind, dtype=dtype, seed=length)
    check(inputs.speech, inputs.frame_prior, backend)


def test_layouts(backend):
    inputs = make_inputs(3, 40, 1, 24)
    weights = inputs.frame_prior
    check(inputs.speech.transpose(0, 1).contiguous().transpose(0, 1), weights, backend)
    check(inputs.speech.mT.contiguous().mT, weights, backend)
    check(inputs.speech[:, ::3, 1::2], weights[:, ::3], backend)
    check(inputs.speech[:1].nan_to_num(0).expand(3, 40, 24), weights, backend)


@pytest.mark.parametrize("batch, length", [(0, 5), (2, 0)])
def test_empty_dimensions(backend, batch, length):
    speech, text = (torch.randn(batch, length, 4, requires_grad=True) for _ in range(2))
    distance = pooled_distance(speech, text, torch.rand(batch, length), torch.rand(batch, length), backend)
    distance.sum().backward()
    assert distance.shape == (batch,) and (distance == 0).all() and speech.grad.shape == speech.shape


@pytest.mark.parametrize("dtype", BAR, ids=lambda dtype: str(dtype)[6:])
def test_distance_and_its_gradients(backend, dtype):
    inputs = make_inputs(3, 60, 9, 24, kind="holes", dtype=dtype)
    weights = inputs.frame_prior, inputs.token_mask.to(inputs.frame_prior.dtype)
    values = [value.detach().requires_grad_() for value in (inputs.speech, inputs.text)]
    grad = torch.tensor([1.0, -2.0, 0.5], dtype=weights[0].dtype)
    found = pooled_distance(*values, *weights, backend)
    gradients = torch.autograd.grad(found, values, grad)
    wide = [value.detach().double().nan_to_num(0).requires_grad_() for value in values]
    pooled = [(weight.double()[..., None] * value).sum(1) for weight, value in zip(weights, wide)]
    expected = (pooled[0] - pooled[1]).abs().sum(1)
    assert found.dtype == weights[0].dtype
    assert relative_error(found, expected) <= BAR[dtype]
    for one, other in zip(gradients, torch.autograd.grad(expected, wide, grad.double())):
        assert one.dtype == dtype and relative_error(one, other) <= BAR[dtype]
