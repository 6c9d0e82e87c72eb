"""The compiled library: what it is, where a call into it runs, and how it is told of tensors."""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_kernels import installation
from pad_kernels.inputs import ANCHORS, REDUCTIONS

_PACKAGE = Path(__file__).parent.parent
REASON: str | None = None  # why the library is missing
COULD_BE_HERE = False  # whether that is a mistake of the installation
try:
    NATIVE: Any = importlib.import_module("pad_kernels._native")
except ImportError as failure:
    NATIVE = None
    REASON, COULD_BE_HERE = installation.missing_library(_PACKAGE, failure)
else:
    REASON = installation.stale_library(_PACKAGE, NATIVE.sources() if hasattr(NATIVE, "sources") else "unknown")
    if REASON is not None:
        NATIVE, COULD_BE_HERE = None, True

# In the order of the enumeration in csrc/tensor.h.
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTION_CODES = {name: code for code, name in enumerate(REDUCTIONS)}
ANCHOR_CODES = {name: code for code, name in enumerate(ANCHORS)}

# Threads of the CPU, or none and a CUDA stream, and what allocates memory for the time of the call.
Context = tuple[int, int, Any]


def instruction_set() -> str | None:
    """Name of the instruction set in use."""
    return NATIVE.instruction_set() if NATIVE else None


def cuda_targets() -> str | None:
    """What the CUDA kernels were compiled for; None without them."""
    return NATIVE.cuda_targets() or None if NATIVE else None


def cuda_note() -> str:
    """Why there are no CUDA kernels, as far as the build said so."""
    return installation.cuda_note(_PACKAGE) or "left out"


def release_kept_memory() -> None:
    """Give the memory of freed gradients back to the system."""
    if NATIVE:
        NATIVE.release_kept_memory()


def execution_context(device: torch.device) -> contextlib.AbstractContextManager[Context]:
    """Where a call into the library runs."""
    return _on_cpu(torch.get_num_threads()) if device.type == "cpu" else _on_stream(device)


@functools.cache
def _on_cpu(threads: int) -> contextlib.AbstractContextManager[Context]:
    return contextlib.nullcontext((threads, 0, None))


@contextlib.contextmanager
def _on_stream(device: torch.device) -> Iterator[Context]:
    workspace: list[Tensor] = []

    def allocate(size: int) -> int:
        workspace.append(torch.empty(size, dtype=torch.uint8, device=device))
        return workspace[-1].data_ptr()

    with torch.cuda.device(device):
        yield 0, torch.cuda.current_stream(device).cuda_stream, allocate


def gradient(needed: bool, of: Tensor) -> Tensor:
    """Memory for the gradient of a tensor, contiguous, empty unless needed; a large one on a CPU is where an earlier
    one was."""
    if not needed:
        return torch.empty(0, dtype=of.dtype, device=of.device)
    if of.nbytes >= NATIVE.LARGE_RESULT_BYTES and of.device.type == "cpu":
        return torch.frombuffer(NATIVE.Memory(of.nbytes), dtype=of.dtype).view(of.shape)
    # The quickest way where it serves.
    return torch.empty_like(of) if of.is_contiguous() else torch.empty(of.shape, dtype=of.dtype, device=of.device)


def rows(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous: any other strides serve as they are."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def packed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor contiguous and in `dtype`, as it mostly is already: to look is quicker than to ask for it."""
    return tensor if tensor.dtype == dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def strided(tensor: Tensor) -> tuple[int, ...]:
    """Address, and the strides of all dimensions but the last."""
    return tensor.data_ptr(), *tensor.stride()[:-1]
