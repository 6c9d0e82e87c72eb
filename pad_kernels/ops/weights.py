"""What each position weighs: a mask and a prior folded into one number, as the ops take it."""

import math

import torch
from torch import Tensor

from pad_kernels import checks
from pad_kernels.inputs import FLOATING, accumulator

# Of masked frames where units are spans: they count in no mean.
MASKED_IN_SPANS = -1.0


def position_weights(
    name: str,
    values: Tensor,
    real: Tensor | None,
    given: Tensor | None,
    compiled=None,
    *,
    normalized: bool = False,
    masked: float = 0.0,
) -> Tensor:
    """Weights [B, L] of `values` [B, L, ...] in their accumulator dtype; constants.

    The prior `given` (argument `name`), which `normalized` divides by its sum over the row, or without one 1 / (number
    of real positions). Positions that the bool mask `real` leaves out weigh `masked`, and may hold anything.
    compiled: from `backends.compiled`, to do it in one go where the tensors are plain.

    Raises ValueError for a prior of the wrong shape, dtype or device; on the CPU also for one that is negative or NaN
    at a real position, or whose sum the accumulator dtype does not hold. Elsewhere such a prior counts as 0.
    """
    shape, dtype, device = values.shape[:2], accumulator(values.dtype), values.device
    if given is not None:
        checks.tensor(name, given, FLOATING, shape, device, "a floating-point tensor")
    if compiled and checks.are_plain(real, given):
        weights, bounds = compiled.position_weights(real, given, shape, dtype, normalized, masked)
        _check_bounds(name, bounds, shape, dtype)
        return weights
    if given is not None:
        weights = _prior(name, given.detach(), real, dtype)
        if normalized:
            weights = over_sum(weights)
    elif real is None:
        return torch.full(shape, 1 / max(shape[1], 1), dtype=dtype, device=device)
    else:
        weights = real / real.sum(1, keepdim=True).to(dtype).clamp(min=1)
    return weights if masked == 0 or real is None else torch.where(real, weights, masked)


def over_sum(weights: Tensor) -> Tensor:
    """Weights [B, L] that sum to 1 over each row, or stay 0."""
    total = weights.sum(1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def _prior(name: str, given: Tensor, real: Tensor | None, dtype: torch.dtype) -> Tensor:
    if real is not None:
        given = torch.where(real, given, 0)
    if not checks.values_can_be_read(given):
        return torch.where(given > 0, given, 0).to(dtype)
    if given.numel():
        _check_bounds(name, [bound.item() for bound in torch.aminmax(given)], given.shape, dtype)
    return given.to(dtype)


def _check_bounds(name, bounds, shape, dtype):
    lowest, highest = bounds
    limits = torch.finfo(dtype)
    if not (lowest >= 0 and highest <= limits.max / max(shape[1], 1) and (highest == 0 or highest >= limits.tiny)):
        bad = "NaN" if math.isnan(lowest) else lowest if lowest < 0 else highest
        raise ValueError(
            f"{name}: got {bad} at a real position, expected values of at least 0 whose sum is a {str(dtype)[6:]}"
        )
