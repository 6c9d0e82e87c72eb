"""What each position weighs: a mask and a prior folded into one number, as the ops take it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pad_kernels import checks
from pad_kernels.inputs import Positions, opmath_dtype

# The smallest normal and the largest number.
_LIMITS = {
    dtype: (limits.tiny, limits.max)
    for dtype, limits in ((dtype, torch.finfo(dtype)) for dtype in (torch.float32, torch.float64))
}


def position_weights(positions: Positions, *, normalized: bool = False, masked: float = 0.0) -> Tensor:
    """Weights [B, L] of the positions in the opmath dtype of their values; constants.

    The prior, which `normalized` divides by its sum over the row, or without one 1 / (number of real positions). Masked
    positions weigh `masked`, and may hold anything.

    Raises ValueError, on the CPU, for a prior that is negative or NaN at a real position, or whose sum the dtype does
    not hold. Elsewhere such a prior counts as 0.
    """
    name, values, mask, prior = positions
    shape, dtype = values.shape[:2], opmath_dtype(values.dtype)
    if prior is not None:
        weights = _prior(name, prior.detach(), mask, dtype)
        if normalized:
            weights = normalize(weights)
        weights = weights.to(dtype)
    elif mask is None:
        return torch.full(shape, 1 / max(shape[1], 1), dtype=dtype, device=values.device)
    else:
        weights = mask / mask.sum(1, keepdim=True).to(dtype).clamp(min=1)
    return weights if masked == 0 or mask is None else torch.where(mask, weights, masked)


def normalize(weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Weights [B, L] over their sum [B, 1], so that each row sums to 1; a row whose sum is 0 stays as it is."""
    if total is None:
        total = weights.sum(1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def _prior(name: str, prior: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    if mask is not None:
        prior = torch.where(mask, prior, 0)
    if not checks.values_can_be_read(prior):
        return torch.where(prior > 0, prior, 0).to(dtype)
    if prior.numel():
        check_bounds(name, _bounds(prior), prior.shape, dtype)
    return prior.to(torch.promote_types(prior.dtype, dtype))


def _bounds(prior: Tensor) -> tuple[float, ...]:
    """As PriorBounds of csrc/weights.h."""
    peaks = prior.amax(1)
    return prior.min().item(), peaks.max().item(), torch.where(peaks > 0, peaks, torch.inf).min().item()


def check_bounds(name: str, bounds: Sequence[float], shape: Sequence[int], dtype: torch.dtype) -> None:
    """ValueError unless the lowest and the highest prior are at least 0, and a row's sum a number of `dtype`.

    bounds: the lowest and the highest prior, and the lowest that is the highest of a row, of rows with one above 0.
    """
    lowest, highest, lowest_peak = bounds
    smallest, largest = _LIMITS[dtype]
    if not lowest >= 0:
        bad = f"{'NaN' if math.isnan(lowest) else lowest} at a real position"
    elif not highest <= largest / max(shape[1], 1):
        bad = f"{highest} at a real position"
    elif 0 < lowest_peak < smallest:
        bad = f"{lowest_peak:g} as the highest of an utterance"
    else:
        return
    raise ValueError(f"{name}: got {bad}, expected values of at least 0 whose sum is a {str(dtype)[6:]}")
