"""frame_norms: its values by the definition, what it refuses, and its registration. Triton: triton_interpreted.py."""

import pytest
import torch
from inputs import relative_error
from torch.library import opcheck

import pad_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values(dtype):
    values = torch.randn(2, 7, 5).to(dtype)
    found = pad_kernels.frame_norms(values)
    assert relative_error(found, values.double().square().sum(2).sqrt()) <= 1e-6
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_registration():
    opcheck(torch.ops.pad_kernels.frame_norms.default, (torch.randn(2, 7, 5), ""))
    values = torch.randn(2, 7, 5)
    compiled = torch.compile(pad_kernels.frame_norms, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values), pad_kernels.frame_norms(values))


@pytest.mark.parametrize("values", [torch.randn(2, 3), torch.ones(1, 2, 3, dtype=torch.int64), None], ids=str)
def test_refusals(values):
    with pytest.raises(ValueError, match="^values: got .*, expected a floating-point tensor"):
        pad_kernels.frame_norms(values)
    with pytest.raises(ValueError, match="the native backend has no frame_norms"):
        pad_kernels.frame_norms(torch.randn(2, 7, 5), backend="native")
