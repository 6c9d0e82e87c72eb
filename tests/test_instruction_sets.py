"""The native kernels in each instruction set that this processor has, whichever of them it would choose."""

import pytest
import test_alignment
import test_memory
import test_pooling
import test_significance
import torch
from inputs import make_inputs

from pad_kernels import pad_loss, significance

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def kernels(request, native):
    """The native backend, made to use one instruction set."""
    from pad_kernels import _native

    before = _native.instruction_set()
    if not _native.set_instruction_set(request.param):
        pytest.skip(f"no {request.param} on this processor")
    yield native
    _native.set_instruction_set(before)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 40])
@pytest.mark.parametrize("width", [5, 33, 48, 128, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alignment_kernels(kernels, dtype, width, units, temperature):
    for kind in ("ragged", "holes"):
        inputs = make_inputs(2, 150, 27, width, kind=kind, units=units, dtype=dtype)
        test_alignment.check(inputs, temperature, kernels)


@pytest.mark.parametrize("width", [5, 40, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_significance_kernels(kernels, dtype, width):
    test_significance.check(*test_significance.make(2, 2, 90, width, dtype=dtype), kernels)


@pytest.mark.parametrize("width", [5, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_kernels(kernels, dtype, width):
    test_pooling.check(*test_pooling.make(2, 150, 20, width, kind="holes", dtype=dtype), kernels)


@pytest.mark.parametrize("width", [48, 64])
@pytest.mark.parametrize("level", ["global", "token", "span"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_gradients(kernels, dtype, level, width):
    """Those of a row are whole cache lines, or not."""
    test_memory.check_large_gradient(level, dtype, width, kernels)


@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_alike(kernels, dtype, level):
    """What a product leaves out of each of its terms would have one sign; of these numbers it would be largest."""
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1.00341796875, 1.998046875):
        rows = (size * torch.randn(2, 40, 256, generator=generator).sign()).to(dtype)
        loss = pad_loss(rows, rows, level=level, temperature=0, num_anchors=40, scales=(0.1,), backend=kernels)
        assert abs(float(loss)) < 1e-6


@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("frame", "token"), [(1e17, 1e25), (1.0, 3e37), (5e18, 5e18), (3e37, 1.0), (1e20, 1e20)])
def test_norms_that_overflow(kernels, frame, token, dtype, temperature, level):
    """Their cosines are 0; an element that is not finite is not passed over."""
    generator = torch.Generator().manual_seed(0)
    speech, text = (torch.randn(2, n, 32, generator=generator) for n in (30, 17))
    speech[:, 3] *= frame
    text[:, 2] *= token
    speech, text = (values.to(dtype).requires_grad_() for values in (speech, text))
    losses = [pad_loss(speech, text, level=level, temperature=temperature, backend=b) for b in (kernels, "reference")]
    assert losses[0].isfinite() and (losses[0] - losses[1]).detach().abs() < 1e-5
    for found, expected in zip(*(torch.autograd.grad(loss, (speech, text)) for loss in losses), strict=True):
        assert (found[expected.isfinite()].double() - expected[expected.isfinite()].double()).norm() <= (
            1e-2 * expected[expected.isfinite()].double().norm()
        )
    for values, index in ((speech, (0, 3, 5)), (text, (0, 2, 5))):
        broken = values.detach().clone()
        broken[index] = torch.inf
        pair = (broken, text) if values is speech else (speech, broken)
        assert not pad_loss(*pair, level="token", temperature=0.1, backend=kernels).isfinite()


@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_that_overflow(kernels, dtype, temperature, level):
    """Of a frame with a unit vector along it: the cosine is 0, and so is what it gives of a gradient."""
    generator = torch.Generator().manual_seed(1)
    speech, text = (torch.randn(2, n, 32, generator=generator).to(dtype) for n in (30, 17))
    speech[:, 3] = 3e38 * text[:, 2].sign()
    text[:, 1:] = text[:, 2:3]
    speech, text = (values.requires_grad_() for values in (speech, text))
    losses = [pad_loss(speech, text, level=level, temperature=temperature, backend=b) for b in (kernels, "reference")]
    assert losses[0].isfinite() and (losses[0] - losses[1]).detach().abs() < 1e-5
    for found, expected in zip(*(torch.autograd.grad(loss, (speech, text)) for loss in losses), strict=True):
        assert found.isfinite().all()
        assert (found.double() - expected.double()).norm() <= 1e-2 * expected.double().norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_significance_of_rows_that_are_alike(kernels, dtype):
    generator = torch.Generator().manual_seed(0)
    query, other = (1.00341796875 * torch.randn(1, 1, 200, 64, generator=generator).sign() for _ in range(2))
    query = query.to(dtype)
    key = torch.cat([query[:, :, :100], other[:, :, 100:].to(dtype)], dim=2)
    found = significance(query, key, scale=0.5, backend=kernels).double()
    expected = significance(query.double(), key.double(), scale=0.5, backend="reference")
    assert ((found - expected).abs() / expected).max() < 1e-6 * 0.5 * 64 * 1.01
