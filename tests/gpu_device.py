"""The device of the tests that need a GPU.

PAD_KERNELS_TEST_DEVICE=cpu runs each of them on the CPU, at small sizes and with TRITON_INTERPRET=1 Triton too, to find
mistakes in the tests themselves: what is asked of a GPU alone (graphs, streams, memory) is answered by a stand-in.
"""

import os

import pytest
import torch

import pad_kernels
from benchmarks import accelerator

DRY_RUN = os.environ.get("PAD_KERNELS_TEST_DEVICE") == "cpu"
GPU = accelerator.get("dry-run" if DRY_RUN else "cuda")
DEVICE = GPU.tensors
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(GPU.missing() is not None, reason="torch sees no CUDA device")]


def serving(op: str) -> list[str]:
    """Names of the backends that have an op on this device."""
    return pad_kernels.info.report()["ops"][DEVICE][op]


def few(values: list) -> list:
    """All values on a GPU, the last one in a dry run."""
    return list(values)[-1:] if DRY_RUN else list(values)


def sized(*shape: int) -> tuple[int, ...]:
    """A shape as it is on a GPU; in a dry run at most 2 x 24 x 5 x 16."""
    return tuple(min(size, most) for size, most in zip(shape, (2, 24, 5, 16), strict=True)) if DRY_RUN else shape


def times(count: int) -> int:
    """How often on a GPU; in a dry run once."""
    return min(count, 1) if DRY_RUN else count


def to_device(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors on the device."""
    return [x.to(DEVICE) for x in tensors]
