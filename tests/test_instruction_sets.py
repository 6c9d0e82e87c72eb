"""The native kernels in each instruction set that this processor has, whichever of them it would choose."""

import pytest
import test_alignment
import test_memory
import test_pooling
import test_significance
import torch
from inputs import make_inputs

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
@pytest.mark.parametrize("width", [5, 33, 128, 200])
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


@pytest.mark.parametrize("level", ["global", "token", "span"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_gradients(kernels, dtype, level):
    test_memory.check_large_gradient(level, dtype, 64, kernels)
