"""Operands of kernels: pointers of a type, many of them into one allocation, without a tensor for each.

On the host an allocation, or a view, takes as long as a small kernel takes on the GPU.
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

_new = tuple.__new__  # as calling the class, in half the time
# Bytes: a buffer begins at a multiple of it.
_STEP = 256
AMD = torch.version.hip is not None


class Recorder(Protocol):
    """Who is told what a call allocates and launches: that of recorded_calls.py."""

    def allocated(self, tensor: Tensor) -> None: ...

    def launched(self, start: Callable[..., None], operands: Sequence[Any], takes_buffers: bool) -> None: ...


class _Thread(threading.local):
    recorder: Recorder | None = None


thread = _Thread()
_HERE = nullcontext()


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory to be filled by kernels."""
    if shape:
        tensor = torch.empty(*shape, dtype=dtype, device=device)  # a tuple takes longer, it is first read as names
    else:
        tensor = torch.empty_strided((), (), dtype=dtype, device=device)
    if thread.recorder is not None:
        thread.recorder.allocated(tensor)
    return tensor


def on(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which kernels start on the device: nothing has to be done where that is the current one."""
    if device.type == "cuda" and device.index is not None and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return _HERE


class Part(NamedTuple):
    """A place in an allocation."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """The places of several buffers in one allocation, and its bytes."""

    parts: tuple[Part | None, ...]
    bytes: int

    def allocate(self, device: torch.device) -> Tensor:
        """Memory for all of them."""
        return empty((self.bytes,), torch.uint8, device)

    def buffers(self, memory: Tensor) -> "list[Buffer | None]":
        """The buffers in that memory; None for what was not wanted."""
        base = memory.data_ptr()
        return [None if part is None else _new(Buffer, (base + part[0], part[1], memory, part)) for part in self.parts]


class Buffer(NamedTuple):
    """An operand of a kernel. `kind` is what it is compiled for: the dtype, in a tuple where the pointer is not aligned
    to 16 bytes."""

    pointer: int
    kind: torch.dtype | tuple[torch.dtype]
    memory: Tensor
    part: Part | None = None  # None: all of `memory`, in the dtype that it is to be read as

    def tensor(self) -> Tensor:
        """The same memory as a tensor."""
        if self.part is None:
            dtype = self.kind if isinstance(self.kind, torch.dtype) else self.kind[0]
            return self.memory if self.memory.dtype == dtype else self.memory.view(dtype)
        offset, dtype, shape = self.part
        bytes = math.prod(shape) * dtype.itemsize
        return self.memory[offset : offset + bytes].view(dtype).view(shape)


@functools.lru_cache(maxsize=4096)
def layout(*wanted: tuple | None) -> Layout:
    """Room for buffers of (dtype, *shape) each; None: for nothing."""
    parts: list[Part | None] = []
    offset = 0
    for one in wanted:
        if one is None:
            parts.append(None)
            continue
        dtype, *shape = one
        parts.append(Part(offset, dtype, tuple(shape)))
        offset += -(-math.prod(shape) * dtype.itemsize // _STEP) * _STEP
    return Layout(tuple(parts), offset)


def allocate(device: torch.device, *wanted: tuple | None) -> "list[Buffer | None]":
    """New buffers that live as long as one of them does."""
    if not any(wanted):
        return [None] * len(wanted)
    room = layout(*wanted)
    return room.buffers(room.allocate(device))


def operand(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Buffer | None:
    """A tensor as a kernel's operand, its elements read as `dtype`."""
    if tensor is None:
        return None
    pointer = tensor.data_ptr()
    kind = tensor.dtype if dtype is None else dtype
    return _new(Buffer, (pointer, (kind,) if pointer & 15 else kind, tensor, None))


def contiguous(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Buffer | None:
    """As `operand`, of a tensor that a kernel reads as contiguous."""
    return None if tensor is None else operand(tensor.contiguous(), dtype)
