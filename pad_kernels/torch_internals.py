"""The private parts of torch that the package uses, all of them; tests/test_torch_internals.py tests each.

A functorch transform is torch.vmap, torch.func.grad, jvp and their like. For a batch of upstream gradients
(is_grads_batched, jacobian(vectorize=True)) autograd has an older vmap, which calls a registered op for each of them.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def in_functorch() -> bool:
    """Whether a functorch transform is at work, outside torch.compile."""
    return torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


def is_batched(value: object) -> bool:
    """Whether vmap maps over this tensor."""
    return isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value)


def is_batch_of_gradients(value: Tensor) -> bool:
    """Whether autograd runs a backward once for all of these upstream gradients, by an older vmap of its own."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(value)


def is_differentiated_by_functorch(value: Tensor) -> bool:
    """Whether torch.func.grad, or its like, differentiates with respect to this tensor."""
    return torch._C._functorch.is_gradtrackingtensor(value)


def is_distributed(value: Tensor) -> bool:
    """Whether it is a DTensor; inside torch.compile that is not asked."""
    # Where nobody has imported the module there is none.
    module = None if torch.compiler.is_compiling() else sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def in_forward_mode() -> bool:
    """Whether forward mode (jvp) is at work, outside torch.compile."""
    return forward_ad._current_level >= 0 and not torch.compiler.is_compiling()


def has_tangent(value: Tensor) -> bool:
    """Whether forward mode (jvp) differentiates with respect to this tensor."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def is_traced() -> bool:
    """Whether values are unknown: torch.compile, or make_fx with tensors that have values of their own."""
    return (
        torch.compiler.is_compiling() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def size_of_trace(value: Any) -> Any:
    """The value; of a size, which torch.jit.trace gives as a tensor, the number."""
    if isinstance(value, Tensor) and not value.dim() and torch._C._get_tracing_state() is not None:
        return int(value)
    return value


def is_symbolic(value: float) -> bool:
    """Whether torch.compile traces this number as one that may change."""
    return is_undecided(value <= 0, value > 0)


def is_undecided(is_less: bool, is_more: bool) -> bool:
    """Whether torch.compile traces a number of which neither is known: later calls may have either."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return not (statically_known_true(is_less) or statically_known_true(is_more))


def can_bypass_dispatcher(first: Tensor, *others: Tensor | None) -> bool:
    """Whether the memory of tensors on one device, the first of which is given, may be used directly: nobody traces,
    transforms or watches operators."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or first.is_meta
    ):
        return False
    for value in (first, *others):
        # The memory of a negative view holds the number without its sign.
        if value is not None and (type(value) not in _PLAIN or value.is_neg()):
            return False
    return True


def without_functorch(function: Any, *arguments: Any) -> Any:
    """The function's value for arguments that no functorch transform is about, with the transforms set aside."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        return function(*arguments)
