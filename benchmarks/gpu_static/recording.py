"""The launches of a call, in order: those of Triton kernels, and those of PyTorch's own around them.

The call runs as it is, on tensors that need no memory ("meta") or on the interpreter's; what starts a Triton kernel
is replaced, and a dispatch mode sees the operators of PyTorch.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_static.cases import Arguments, Call
from benchmarks.gpu_static.operators import Operator, operator

# Keywords of a launch that are the compiler's.
OPTIONS = (
    "enable_fp_fusion",
    "num_warps",
    "num_stages",
    "num_ctas",
    "maxnreg",
)
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64",
    torch.int32: "*i32", torch.uint8: "*u8", torch.float64: "*fp64", torch.bool: "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Specialization:
    """What a Triton kernel is compiled for, as plain data."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the compiler's."""
        return dict(self.options).get(name, default)

    @property
    def dtype(self) -> str:
        """That of the inputs, as far as the signature says."""
        kinds = {kind for _, kind in self.signature}
        return next((name for name in ("bf16", "fp16") if f"*{name}" in kinds), "fp32")


@dataclass(frozen=True)
class Launch:
    """A Triton kernel as it is started."""

    specialization: Specialization
    programs: int
    # Sizes and strides that were given as numbers: two launches with the same work have the same.
    numbers: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return self.specialization.kernel


@dataclass
class Recorded:
    """Launches of a call in order; `backward`: the first of the backward pass."""

    launches: list[Launch | Operator] = field(default_factory=list)
    backward: int | None = None


def specialization(kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> Specialization:
    """What Triton's own rules make of the arguments of a launch."""
    constexprs = {p.name for p in kernel.params if p.is_constexpr}
    skipped = {p.name for p in kernel.params if p.do_not_specialize}
    signature, constants, aligned = {}, {}, []
    for place, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if name in constexprs or value is None or (type(value) is int and value == 1 and name not in skipped):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.append(place)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if name not in skipped and value % 16 == 0:
                aligned.append(place)
    return Specialization(
        kernel.fn.__module__, kernel.fn.__name__, tuple(signature.items()), tuple(constants.items()), tuple(aligned),
        tuple(sorted(options.items())),
    )  # fmt: skip


def launch_of(kernel: Any, grid: Any, arguments: tuple, keywords: dict[str, Any]) -> Launch:
    """A launch from what `kernel[grid](...)` was given."""
    options = {name: keywords[name] for name in OPTIONS if keywords.get(name) is not None}
    given = dict(zip(kernel.arg_names, arguments)) | {k: v for k, v in keywords.items() if k in kernel.arg_names}
    for parameter in kernel.params:
        if parameter.has_default:
            given.setdefault(parameter.name, parameter.default)
    programs = 1
    for count in grid(given) if callable(grid) else grid:
        programs *= count
    numbers = tuple(value for value in given.values() if type(value) in (int, float))
    return Launch(specialization(kernel, given, options), programs, numbers)


class Operators(TorchDispatchMode):
    """Sees each operator of PyTorch that starts a kernel."""

    def __init__(self, found: list):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        seen = operator(function, arguments, keywords or {}, result)
        if seen is not None:
            self.found.append(seen)
        return result


@contextlib.contextmanager
def kernels_not_started(found: list[Launch | Operator]) -> Iterator[None]:
    """Inside, a launch of a Triton kernel goes to `found` and nowhere else."""
    from triton.runtime.jit import JITFunction

    def run(kernel, *arguments, grid, warmup=False, **keywords):
        found.append(launch_of(kernel, grid, arguments, keywords))

    with mock.patch.object(JITFunction, "run", run):
        yield


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, the Triton backend serves every tensor, and operators may be watched."""
    from pad_kernels import backends, torch_internals
    from pad_kernels.backends.triton import BACKEND

    with (
        mock.patch.object(backends, "select_backend", lambda *_: BACKEND),
        mock.patch.object(torch_internals, "can_bypass_dispatcher", lambda *_: True),
    ):
        yield


def perform(call: Call, arguments: Arguments, between: Callable[[], None] = lambda: None) -> None:
    """Make the call; `between` is called after the forward pass."""
    from pad_kernels import pad_loss

    speech, text = (x.detach().requires_grad_(call.backward) for x in arguments[:2])
    with torch.set_grad_enabled(call.backward):
        loss = pad_loss(speech, text, *arguments[2:], level=call.level, temperature=call.temperature)
    between()
    if call.backward:
        torch.autograd.grad(loss, (speech, text))


def perform_significance(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> None:
    """The significance prior of a layer."""
    from pad_kernels.backends.triton import BACKEND

    BACKEND.significance(query, key, mask, query.shape[3] ** -0.5, None)
