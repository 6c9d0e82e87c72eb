"""The list of ops, and what each needs besides its schema: no second gradient, and its answer to torch.vmap."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pad_kernels.inputs import Gradients, Needed

# The arguments of a tiny case, as a backend's function takes them.
Example = Callable[[torch.device, torch.dtype], tuple[Any, ...]]
# Every op by its name. Of those without an example self_test.py has a case of its own.
OPS: dict[str, Example | None] = {}


def define(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    example: Example | None = None,
) -> None:
    """Registers the op pad_kernels::`name`."""
    OPS[name] = example
    torch.library.define(f"pad_kernels::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"pad_kernels::{name}", "CompositeExplicitAutograd", implementation)
    torch.library.register_fake(f"pad_kernels::{name}", fake)


def fake_gradients(speech: Tensor, text: Tensor, needed: Needed) -> Gradients:
    """What a backward op gives, without values: each gradient is empty unless needed."""
    return (
        speech.new_empty(speech.shape if needed.speech else 0),
        text.new_empty(text.shape if needed.text else 0),
    )


def refuse_vmap(name: str) -> None:
    """The op is batched already: torch.vmap over it is an error, not a slow loop."""

    def refuse(info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise RuntimeError(_refusal(name))

    torch.library.register_vmap(f"pad_kernels::{name}", refuse)


def differentiate_once(name: str, what: str) -> None:
    """The backward op `name`, of which the first argument is the upstream gradient.

    It has no gradient itself. For a batch of upstream gradients it is called for each of them; torch.vmap over
    anything else is refused.
    """

    def second(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"pad_kernels: {what} can be differentiated once; its gradient has no gradient")

    def each(info: Any, in_dims: tuple[int | None, ...], grads: Tensor, *rest: Any) -> Any:
        if in_dims[0] is None or any(place is not None for place in in_dims[1:]):
            raise RuntimeError(_refusal(name))
        op, place = getattr(torch.ops.pad_kernels, name).default, in_dims[0]
        size: int = info.batch_size
        each_grad = grads.unbind(place) if size else [torch.zeros_like(grads.sum(place))]
        found = [op(grad, *rest) for grad in each_grad]
        return tuple(torch.stack(side)[:size] for side in zip(*found)), (0, 0)

    torch.library.register_autograd(f"pad_kernels::{name}", second)
    torch.library.register_vmap(f"pad_kernels::{name}", each)


def _refusal(name: str) -> str:
    return f"pad_kernels::{name} does not take torch.vmap: it is batched already, pass all utterances at once"
