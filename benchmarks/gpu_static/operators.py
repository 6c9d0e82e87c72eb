"""Operators of PyTorch as work for a GPU: the kernels that they start, one each, with their bytes and multiply-adds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# Operators that start no kernel: views, allocations, and what only looks at a tensor.
NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "view", "_unsafe_view", "expand", "slice",
    "select", "unsqueeze", "squeeze", "permute", "transpose", "t", "alias", "detach", "as_strided", "unbind", "split",
    "reshape", "_reshape_alias", "lift_fresh", "is_same_size", "set_", "resize_", "narrow", "diagonal", "unfold",
    "scalar_tensor",
}  # fmt: skip
FILLS = {
    "fill_", "zero_", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full",
    "new_ones", "arange",
}  # fmt: skip
PRODUCTS = {"bmm", "mm", "addmm", "baddbmm"}
# Where each has the dimensions that it goes along.
REDUCTIONS = {
    "sum": 1, "mean": 1, "max": 1, "amax": 1, "min": 1, "amin": 1, "linalg_vector_norm": 2, "any": 1, "all": 1,
    "_softmax": 1, "_softmax_backward_data": 2, "cumsum": 1, "logsumexp": 1, "argmax": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """One kernel of PyTorch's own: `kind` is "elementwise", "broadcast", "reduction" or "product"."""

    name: str
    kind: str
    read: int  # bytes
    written: int
    elements: int = 0
    # Of a reduction along another dimension than the last: the elements that a thread passes one after another.
    steps: int = 0
    flops: float = 0.0
    item: int = 4  # bytes of an element
    aligned: bool = True  # rows of a product's operands are multiples of 16 bytes


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
    if name in NOTHING or function.is_view or not outputs or not any(x.numel() for x in outputs):
        return None
    inputs = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, torch.Tensor)]
    written = sum(_bytes(x) for x in outputs)
    read = 0 if name in FILLS else sum(_bytes(x) for x in inputs)
    elements = max(x.numel() for x in outputs)
    item = max(x.element_size() for x in outputs)
    if name in PRODUCTS:
        left, right = inputs[-2:]
        rows = (x.shape[-1] if x.stride(-1) == 1 else x.shape[-2] for x in (left, right))
        aligned = all(row * x.element_size() % 16 == 0 for row, x in zip(rows, (left, right)))
        flops = 2.0 * left.numel() * right.shape[-1]
        return Operator(name, "product", read, written, elements, 0, flops, left.element_size(), aligned)
    if name in REDUCTIONS:
        value, place = inputs[0], REDUCTIONS[name]
        dimensions = arguments[place] if len(arguments) > place else keywords.get("dim")
        dimensions = [dimensions] if isinstance(dimensions, int) else list(dimensions or range(value.dim()))
        inner = not value.dim() or any(d % value.dim() == value.dim() - 1 for d in dimensions)
        steps = 0 if inner else max(value.shape[d] for d in dimensions)
        return Operator(name, "reduction", read, written, value.numel(), steps, item=item)
    broadcast = any(1 < x.numel() < elements or (x.numel() > 1 and 0 in x.stride()) for x in inputs)
    return Operator(name, "broadcast" if broadcast else "elementwise", read, written, elements, item=item)
