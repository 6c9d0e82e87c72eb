"""The Euclidean norm of each frame."""

from typing import Any

import torch
from torch import Tensor

from pad_kernels import backends, checks
from pad_kernels.inputs import FLOATING, opmath_dtype
from pad_kernels.ops import registration


def _check(values: Tensor) -> None:
    """ValueError unless the input is as the op takes it."""
    if not checks.is_strided(values) or values.dim() != 3 or values.dtype not in FLOATING:
        checks.wrong("values", values, "a floating-point tensor of shape [batch, length, width]")


def _frame_norms(values: Tensor, backend: str) -> Tensor:
    _check(values)
    chosen = backends.select_backend("frame_norms", backend, values.device, values.dtype)
    found: Tensor = chosen.function("frame_norms")(values)
    return found


def _frame_norms_fake(values: Tensor, backend: str) -> Tensor:
    return values.new_empty(values.shape[:2], dtype=opmath_dtype(values.dtype))


def _example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    values = torch.randn(2, 70, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (values.to(device, dtype),)


registration.define("frame_norms", "(Tensor values, str backend) -> Tensor", _frame_norms, _frame_norms_fake, _example)
registration.refuse_vmap("frame_norms")


def frame_norms(values: Tensor, *, backend: str | None = None) -> Tensor:
    """The norm of each frame: sqrt(sum_d values_d^2).

    Args:
        values: [B, M, D] float32, float64, bfloat16 or float16.
        backend: as for `align`.

    Returns:
        [B, M] float32 (float64 for float64 inputs). A constant for the gradient.

    Raises:
        ValueError: an argument of wrong shape or dtype, or a backend that cannot run here.
    """
    backends.check_name(backend)
    _check(values)
    found: Tensor = torch.ops.pad_kernels.frame_norms.default(values.detach(), backend or "")
    return found
