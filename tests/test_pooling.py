"""The pooling ops of every backend against the float64 reference."""

import pytest
import torch
from inputs import KINDS, make_inputs, relative_error

from pad_kernels import reference
from pad_kernels.pooling import pool

BAR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def check(values, weights, backend):
    values = values.detach().requires_grad_()
    found = pool(values, weights, backend)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    (grad_values,) = torch.autograd.grad(found, values, grad)
    assert found.dtype == weights.dtype and grad_values.dtype == values.dtype
    bar = BAR[values.dtype]
    assert relative_error(found, reference.pooling_forward(values.detach().double(), weights.double())) <= bar
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
    values = torch.randn(batch, length, 4, requires_grad=True)
    pooled = pool(values, torch.rand(batch, length), backend)
    pooled.sum().backward()
    assert pooled.shape == (batch, 4) and (pooled == 0).all() and values.grad.shape == values.shape
