"""What the tests under Triton's interpreter share: pytest loads it as a plugin (TRITON_INTERPRET=1)."""

import sys

import numpy
import pytest
import torch
from conftest import _Dirty
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from benchmarks.interpreter import make_fast
from pad_kernels.backends.triton import BACKEND

make_fast()
BACKEND.kernels  # noqa: B018  (imports the modules that launch)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SPANS = pytest.mark.parametrize("spans", [False, True], ids=["frames", "spans"])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 0.1], ids=["hard", "soft"])
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(autouse=True, scope="session")
def fresh_memory_is_nan():
    """What a kernel forgets to write is NaN, not an old zero."""
    patch = pytest.MonkeyPatch()
    for name, module in list(sys.modules.items()):
        if name.startswith("pad_kernels.backends.triton.") and hasattr(module, "torch"):
            patch.setattr(module, "torch", _Dirty())
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def operands_are_cut_to_tf32():
    """The interpreter multiplies float32 as it is; a GPU cuts the operands of a tf32 product to 11 bits."""
    multiply = InterpreterBuilder.create_dot

    def cut(operand):
        if operand.data.dtype != numpy.float32:
            return operand
        return TensorHandle((operand.data.view(numpy.int32) & -8192).view(numpy.float32), operand.dtype)

    def create_dot(self, left, right, sum, input_precision, *options):
        if str(input_precision).endswith("TF32"):
            left, right = cut(left), cut(right)
        return multiply(self, left, right, sum, input_precision, *options)

    patch = pytest.MonkeyPatch()
    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    yield
    patch.undo()


def turn(*places: int) -> torch.dtype:
    """The dtypes take turns: all of them for each case are for `-m slow`."""
    return DTYPES[sum(places) % len(DTYPES)]
