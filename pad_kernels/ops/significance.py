"""How much attention each position receives, without an attention map in memory."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pad_kernels import backends, checks, registration, torch_internals
from pad_kernels.inputs import FLOATING, opmath_dtype
from pad_kernels.weights import normalize


def _check(query: Tensor, key: Tensor, mask: Tensor | None, lse: Tensor | None) -> None:
    """ValueError unless the inputs are as the op takes them."""
    for name, value in (("query", query), ("key", key)):
        if not checks.is_strided(value) or value.dim() != 4 or value.dtype not in FLOATING:
            checks.wrong(name, value, "a floating-point tensor of shape [B, H, T, d]")
    checks.tensor("key", key, (query.dtype,), query.shape, query.device, f"like query a {str(query.dtype)[6:]} tensor")
    batch, heads, length, width = query.shape
    if heads == 0 or width == 0:
        checks.wrong("query", query, "at least one head and width 1")
    if mask is not None:
        checks.exactly("mask", mask, torch.bool, (batch, length), query.device)
    if lse is not None:
        shape, dtypes = (batch, heads, length), (torch.float32, torch.float64)
        checks.tensor("lse", lse, dtypes, shape, query.device, "a float32 or float64 tensor")


def _check_finite(lse: Tensor, mask: Tensor | None) -> None:
    """ValueError, where the values can be read, for a row that counts and whose log-sum-exp is no number."""
    if not lse.numel() or not checks.values_can_be_read(lse):
        return
    bounds = torch.aminmax(lse if mask is None else torch.where(mask[:, None], lse, 0))
    bad = [bound.item() for bound in bounds if not bound.isfinite()]
    if bad:
        raise ValueError(f"lse: got {bad[0]} in a real row, expected finite numbers")


def _significance(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None, backend: str
) -> Tensor:
    _check(query, key, mask, lse)
    return _checked_significance(query, key, mask, scale, lse, backend)


def _checked_significance(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None, backend: str
) -> Tensor:
    if lse is not None:
        _check_finite(lse, mask)
    chosen = backends.select_backend("significance", backend, query.device, query.dtype, query.shape[3])
    return chosen.significance(query, key, mask, scale, lse)


def _significance_fake(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None, backend: str
) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[2]), dtype=opmath_dtype(query.dtype))


def _example(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    values = torch.randn(2, 2, 70, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    query, key = values.to(device, dtype), values.flip(2).to(device, dtype)
    mask = (torch.arange(70) < torch.tensor([[70], [41]])).to(device)
    return query, key, mask, 0.125, None


registration.define(
    "significance",
    "(Tensor query, Tensor key, Tensor? mask, float scale, Tensor? lse, str backend) -> Tensor",
    _significance,
    _significance_fake,
    _example,
)
registration.refuse_vmap("significance")


def significance(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    lse: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Significance prior of one layer: the share of its attention that each position receives.

        A = softmax(query key^T scale) over the real keys, mean over heads
        P[m] = sum_i A[i, m] / sum_m' sum_i A[i, m'],  i over the real rows

    The rows of A are recomputed tile by tile and never held: O(B H T) memory.

    Args:
        query, key: [B, H, T, d] float32, float64, bfloat16 or float16, one dtype.
        mask: [B, T] bool or integers 0/1. None: all positions are real.
        scale: factor of the scores. None: 1 / sqrt(d).
        lse: [B, H, T] float32 or float64 natural log-sum-exp of each row's scaled scores, if it is known already: over
            the real keys, or over more keys, whose share is then left out. Finite in the real rows.
        backend: as for `align`.

    Returns:
        [B, T] float32 (float64 for float64 inputs), sums to 1 over the real positions, 0 at the others; an
        utterance without a real position is 0. A constant for the gradient.

    The rounding of scores of size S changes a row's attention by up to 1e-6 S of it in float32. With `lse` the weight
    of a row may then be off by the same factor; without it every row weighs the same.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot run here.

    Source: attention-based significance prior, section 3 of arXiv 2303.03600.
    """
    backends.check_name(backend)
    _check(query, key, None, lse)
    batch, _, length, width = query.shape
    mask = checks.mask("mask", mask, (batch, length), query.device)
    lse = None if lse is None else lse.detach()
    scale = 1 / math.sqrt(width) if scale is None else checks.factor("scale", scale, query.dtype)
    run = _checked_significance
    if not torch_internals.can_bypass_dispatcher(query, key, mask, lse):
        run = torch.ops.pad_kernels.significance.default
    return run(query.detach(), key.detach(), mask, scale, lse, backend or "")


def significance_from_attentions(attentions: Tensor | Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """The significance prior from attention maps that exist already: its definition.

        P_l[m] = sum_i A_l[i, m] / sum_m' sum_i A_l[i, m'],  P = mean over layers of P_l

    Args:
        attentions: the map of one layer, [B, H, T, T] or, heads averaged, [B, T, T], rows are queries; or a
            sequence of maps, one for each layer.
        mask: [B, T] bool or integers 0/1; rows and columns of masked positions do not count. None: all real.

    Returns:
        [B, T] float32 (float64 for float64 maps), sums to 1 over the real positions, 0 at the others.
        A constant for the gradient.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or an empty sequence.

    Source: attention-based significance prior, section 3 of arXiv 2303.03600.
    """
    layers = [attentions] if isinstance(attentions, Tensor) else attentions
    if not isinstance(layers, Sequence) or not layers:
        wanted = "a map or a sequence of maps that is not empty"
        raise ValueError(f"attentions: got {checks.describe(attentions)}, expected {wanted}")
    priors = []
    for layer in layers:
        square = checks.is_strided(layer) and layer.dim() in (3, 4) and layer.shape[-1] == layer.shape[-2]
        if not square or layer.dtype not in FLOATING or layer.dim() == 4 and layer.shape[1] == 0:
            wanted = "floating-point maps of shape [B, H, T, T] or [B, T, T]"
            raise ValueError(f"attentions: got {checks.describe(layer)}, expected {wanted}")
        first = layers[0]
        if (layer.shape[0], layer.shape[-1], layer.device) != (first.shape[0], first.shape[-1], first.device):
            raise ValueError(
                f"attentions: got {checks.describe(layer)} after {checks.describe(first)}, "
                "expected one batch size, length and device for all layers"
            )
        layer = layer.detach().to(opmath_dtype(layer.dtype))
        real = checks.mask("mask", mask, (layer.shape[0], layer.shape[-1]), layer.device)
        if real is not None:
            both = real[:, :, None] & real[:, None, :]
            layer = torch.where(both if layer.dim() == 3 else both[:, None], layer, 0)
        column_sums = layer.sum(-2) if layer.dim() == 3 else layer.mean(1).sum(-2)
        priors.append(normalize(column_sums))
    return torch.stack(priors).mean(0)
