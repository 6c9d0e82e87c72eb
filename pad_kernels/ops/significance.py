"""How much attention each position receives, without an attention map in memory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pad_kernels import backends, checks
from pad_kernels.inputs import FLOATING, accumulator
from pad_kernels.ops.weights import over_sum

torch.library.define(
    "pad_kernels::significance",
    "(Tensor query, Tensor key, Tensor? mask, float scale, Tensor? lse, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("pad_kernels::significance", "CompositeExplicitAutograd")
def _significance(query, key, mask, scale, lse, backend):
    function = backends.serve("significance", backend, query.device, query.dtype, query.shape[3])
    return function(query, key, mask, scale, lse)


@torch.library.register_fake("pad_kernels::significance")
def _significance_fake(query, key, mask, scale, lse, backend):
    shape = (query.shape[0], query.shape[2])
    return query.new_empty(shape, dtype=accumulator(query.dtype))


checks.refuse_vmap("pad_kernels::significance")


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
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that cannot serve.

    Source: attention-based significance prior, section 3 of arXiv 2303.03600.
    """
    backends.check_name(backend)
    for name, value in (("query", query), ("key", key)):
        if not isinstance(value, Tensor) or value.dim() != 4 or value.dtype not in FLOATING:
            wanted = "a floating-point tensor of shape [B, H, T, d]"
            raise ValueError(f"{name}: got {checks.describe(value)}, expected {wanted}")
    checks.tensor("key", key, (query.dtype,), query.shape, query.device, f"like query a {query.dtype} tensor")
    batch, heads, length, width = query.shape
    if heads == 0 or width == 0:
        raise ValueError(f"query: got {checks.describe(query)}, expected at least one head and width 1")
    mask = checks.mask("mask", mask, (batch, length), query.device)
    if lse is not None:
        shape, dtypes = (batch, heads, length), (torch.float32, torch.float64)
        checks.tensor("lse", lse, dtypes, shape, query.device, "a float32 or float64 tensor")
        lse = lse.detach()
    scale = 1 / math.sqrt(width) if scale is None else checks.number("scale", scale)
    return torch.ops.pad_kernels.significance.default(query.detach(), key.detach(), mask, scale, lse, backend or "")


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
        layer = layer.detach().to(accumulator(layer.dtype))
        real = checks.mask("mask", mask, (layer.shape[0], layer.shape[-1]), layer.device)
        if real is not None:
            both = real[:, :, None] & real[:, None, :]
            layer = torch.where(both if layer.dim() == 3 else both[:, None], layer, 0)
        column_sums = layer.sum(-2) if layer.dim() == 3 else layer.mean(1).sum(-2)
        priors.append(over_sum(column_sums))
    return torch.stack(priors).mean(0)
