"""Operators of PyTorch as work for a GPU: how many kernels, bytes and multiply-adds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# Operators that start no kernel: views, allocations, and what only looks at a tensor.
NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "view", "_unsafe_view", "expand", "slice",
    "select", "unsqueeze", "squeeze", "permute", "transpose", "t", "alias", "detach", "as_strided", "unbind", "split",
    "reshape", "_reshape_alias", "lift_fresh", "is_same_size", "set_", "resize_", "narrow", "diagonal", "unfold",
}  # fmt: skip
PRODUCTS = {"bmm", "mm", "addmm", "baddbmm"}
REDUCTIONS = {
    "sum", "mean", "max", "amax", "min", "amin", "linalg_vector_norm", "norm", "any", "all", "_softmax",
    "_softmax_backward_data", "cumsum", "logsumexp", "argmax", "value_selecting_reduction_backward",
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """One kernel of PyTorch's own: `kind` is "elementwise", "reduction" or "product"."""

    name: str
    kind: str
    read: int
    written: int
    flops: float = 0.0
    # In elements: the innermost dimension that is reduced over, or none.
    item: int = 4
    broadcast: bool = False


def _bytes(tensor: torch.Tensor) -> int:
    """What a tensor occupies: of an expanded one each element once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride else 1
    return count * tensor.element_size()


def operator(function: Any, arguments: tuple, keywords: dict[str, Any], result: Any) -> Operator | None:
    """The work of an operator, or None where it starts no kernel."""
    name = function.overloadpacket.__name__
    outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
    if name in NOTHING or function.is_view or not outputs:
        return None
    if name in ("_to_copy", "clone", "contiguous") and outputs[0].numel() == 0:
        return None
    inputs = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, torch.Tensor)]
    written = sum(_bytes(x) for x in outputs)
    item = max(x.element_size() for x in outputs)
    fills = name in ("fill_", "zero_", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros",
                     "new_full", "new_ones", "arange", "scalar_tensor")  # fmt: skip
    read = 0 if fills else sum(_bytes(x) for x in inputs)
    if name in PRODUCTS:
        left, right = inputs[-2:]
        return Operator(name, "product", read, written, 2.0 * left.numel() * right.shape[-1], left.element_size())
    kind = "reduction" if name in REDUCTIONS else "elementwise"
    largest = max((x.numel() for x in outputs), default=0)
    broadcast = any(x.numel() < largest and x.numel() > 1 or 0 in x.stride() for x in inputs)
    return Operator(name, kind, read, written, 0.0, item, broadcast)
