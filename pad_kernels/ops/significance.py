"""How much attention each position receives, without an attention map in memory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pad_kernels import backends, checks
from pad_kernels.inputs import FLOATING, opmath_dtype
from pad_kernels.ops import registration
from pad_kernels.ops.weights import normalize


def _significance(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None, backend: str
) -> Tensor:
    checks.significance_op(query, key, mask, lse)
    chosen = backends.select_backend("significance", backend, query.device, query.dtype, query.shape[3])
    return chosen.significance(query, key, mask, scale, lse)


def _significance_fake(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None, backend: str
) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[2]), dtype=opmath_dtype(query.dtype))


registration.define(
    "significance",
    "(Tensor query, Tensor key, Tensor? mask, float scale, Tensor? lse, str backend) -> Tensor",
    _significance,
    _significance_fake,
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
        lse: [B, H, T] log-sum-exp of each row's scaled scores over the real keys, if it is known already.
        backend: as for `align`.

    Returns:
        [B, T] float32 (float64 for float64 inputs), sums to 1 over the real positions, 0 at the others; an
        utterance without a real position is 0. A constant for the gradient.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot run here.

    Source: attention-based significance prior, section 3 of arXiv 2303.03600.
    """
    backends.check_name(backend)
    checks.significance_op(query, key, None, lse)
    batch, _, length, width = query.shape
    mask = checks.mask("mask", mask, (batch, length), query.device)
    lse = None if lse is None else lse.detach()
    scale = 1 / math.sqrt(width) if scale is None else checks.number("scale", scale)
    found: Tensor = torch.ops.pad_kernels.significance.default(
        query.detach(), key.detach(), mask, scale, lse, backend or ""
    )
    return found


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
        square = isinstance(layer, Tensor) and layer.dim() in (3, 4) and layer.shape[-1] == layer.shape[-2]
        if not square or layer.dtype not in FLOATING or layer.dim() == 4 and layer.shape[1] == 0:
            wanted = "floating-point maps of shape [B, H, T, T] or [B, T, T]"
            raise ValueError(f"attentions: got {checks.describe(layer)}, expected {wanted}")
        if (layer.shape[0], layer.shape[-1]) != (layers[0].shape[0], layers[0].shape[-1]):
            raise ValueError(
                f"attentions: got {checks.describe(layer)} after {checks.describe(layers[0])}, "
                "expected one batch size and length for all layers"
            )
        layer = layer.detach().to(opmath_dtype(layer.dtype))
        real = checks.mask("mask", mask, (layer.shape[0], layer.shape[-1]), layer.device)
        if real is not None:
            both = real[:, :, None] & real[:, None, :]
            layer = torch.where(both if layer.dim() == 3 else both[:, None], layer, 0)
        column_sums = layer.sum(-2) if layer.dim() == 3 else layer.mean(1).sum(-2)
        priors.append(normalize(column_sums))
    return torch.stack(priors).mean(0)
