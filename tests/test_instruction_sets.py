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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_significance_of_rows_that_are_alike(kernels, dtype):
    generator = torch.Generator().manual_seed(0)
    query, other = (1.00341796875 * torch.randn(1, 1, 200, 64, generator=generator).sign() for _ in range(2))
    query = query.to(dtype)
    key = torch.cat([query[:, :, :100], other[:, :, 100:].to(dtype)], dim=2)
    found = significance(query, key, scale=0.5, backend=kernels).double()
    expected = significance(query.double(), key.double(), scale=0.5, backend="reference")
    assert ((found - expected).abs() / expected).max() < 1e-6 * 0.5 * 64 * 1.01
