"""Calls that are like an earlier one: its kernels, started again with the memory of the new call.

What the host finds out on its way to a kernel depends on the options and on how the inputs are laid out, not on what
is in them. A call is recorded when its like is seen for the second time, and repeated from the third on. Where sizes
change at each step of a training, nothing is recorded.
"""

import itertools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_kernels.backends.triton.memory import AMD, Buffer, on, thread

MOST_CALLS = 1024
Allocation = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides
Found = tuple[tuple[Tensor | None, ...], Any]


class Place(NamedTuple):
    """A buffer of a call, whatever its memory."""

    memory: int  # its number: inputs first, then what is allocated
    offset: int  # in bytes
    buffer: Buffer | None  # without its memory, where a launch takes buffers; None: it takes pointers


class Step(NamedTuple):
    """A launch."""

    allocations: list[Allocation]  # before it
    places: list[Place]  # that no step before it has
    start: Callable[..., None]
    operands: Callable[[list[Any]], tuple[Any, ...]]  # from the values: the constants of all steps, then the places
    done: list[int]  # memories that nothing after it reads


class Recorder:
    """Takes down what a call allocates and launches."""

    def __init__(self, inputs: Sequence[Tensor | None]) -> None:
        self.inputs = len(inputs)
        self.memories = list(inputs)  # kept, so that no other object gets the id of one
        self.numbers = {id(tensor): number for number, tensor in enumerate(inputs) if tensor is not None}
        # One that is given twice may be two another time.
        self.can_be_repeated = len(self.numbers) == sum(tensor is not None for tensor in inputs)
        self.allocations: list[Allocation] = []  # since the last launch
        self.launches: list[tuple[list[Allocation], Callable[..., None], list[Any]]] = []

    def allocated(self, tensor: Tensor) -> None:
        """New memory, whose values are not yet known."""
        self.numbers[id(tensor)] = len(self.memories)
        self.memories.append(tensor)
        self.allocations.append((tuple(tensor.shape), tensor.stride(), tensor.dtype))

    def launched(self, start: Callable[..., None], operands: Sequence[Any], takes_buffers: bool) -> None:
        """`start` has been called with the operands, pointers in place of buffers unless it takes those."""
        found: list[Any] = []
        for operand in operands:
            if isinstance(operand, Buffer):
                number = self.numbers.get(id(operand.memory))
                if number is None:  # a copy, or what an operator has computed
                    self.can_be_repeated = False
                    return
                offset = operand.pointer - operand.memory.data_ptr()
                operand = Place(number, offset, operand._replace(pointer=0, memory=None) if takes_buffers else None)
            found.append(operand)
        self.launches.append((self.allocations, start, found))
        self.allocations = []

    def call(self, found: Found | None, device: torch.device) -> "Call | None":
        """What can be repeated of a call that has ended; None where that is not all of it."""
        if found is None or not self.can_be_repeated or not self.launches or self.allocations:
            return None
        outputs, rest = found
        numbers = [None if tensor is None else self.numbers[id(tensor)] for tensor in outputs]
        constants = [x for _, _, operands in self.launches for x in operands if not isinstance(x, Place)]
        indices: dict[Place, int] = {}
        steps, last, constant = [], {}, itertools.count()
        for allocations, start, operands in self.launches:
            places, taken = [], []
            for operand in operands:
                if not isinstance(operand, Place):
                    taken.append(next(constant))
                    continue
                if operand not in indices:
                    indices[operand] = len(constants) + len(indices)
                    places.append(operand)
                taken.append(indices[operand])
            steps.append(Step(allocations, places, start, operator.itemgetter(*taken), []))
            last |= {operand.memory: steps[-1] for operand in operands if isinstance(operand, Place)}
        for number, step in last.items():
            if number >= self.inputs and number not in numbers:
                step.done.append(number)
        return Call(device, constants, steps, numbers, rest)


class Call(NamedTuple):
    """What a call does, whatever memory it does it in."""

    device: torch.device
    constants: list[Any]
    steps: list[Step]
    outputs: list[int | None]  # the numbers of their memories
    rest: Any  # of what it gives

    def repeat(self, inputs: Sequence[Tensor | None], pointers: list[int]) -> Found:
        """Do it with other inputs."""
        with on(self.device):
            return self._repeat(inputs, pointers)

    def _repeat(self, inputs: Sequence[Tensor | None], pointers: list[int]) -> Found:
        device, values, steps, outputs, rest = self
        values, memories = values.copy(), [*inputs]
        for allocations, places, start, operands, done in steps:
            for shape, strides, dtype in allocations:
                tensor = torch.empty_strided(shape, strides, dtype=dtype, device=device)
                memories.append(tensor)
                pointers.append(tensor.data_ptr())
            for number, offset, buffer in places:
                pointer = pointers[number] + offset
                values.append(pointer if buffer is None else buffer._replace(pointer=pointer, memory=memories[number]))
            start(*operands(values))
            for number in done:
                memories[number] = None
        return tuple([None if number is None else memories[number] for number in outputs]), rest


# By the hash of what a call is like: that, and how it is repeated, if it can be; None: seen once.
_calls: dict[int, tuple[Hashable, Call | None] | None] = {}
_UNSEEN: Any = object()


def forget_calls() -> None:
    """Where other kernels are to be started from now on."""
    _calls.clear()


def call(run: Callable[[], Found | None], kind: Hashable, inputs: Sequence[Tensor | None]) -> Found | None:
    """`run()`: tensors that it has allocated, and what depends on `kind` and the layout of the inputs alone.

    inputs: all the tensors that it reads, on one device; the first of them is one.
    """
    assert inputs[0] is not None
    device = inputs[0].device
    key: list[Hashable] = [kind, device]
    pointers = []
    for tensor in inputs:
        if tensor is None:
            key.append(None)
            pointers.append(0)
            continue
        pointer = tensor.data_ptr()
        key += (tensor.shape, tensor.stride(), tensor.dtype, not pointer & 15)
        if AMD:  # as in `launch`
            key.append(tensor.untyped_storage().nbytes() < 2**31)
        pointers.append(pointer)
    like = tuple(key)
    mark = hash(like)
    known = _calls.get(mark, _UNSEEN)
    if known is _UNSEEN:
        if len(_calls) >= MOST_CALLS:
            forget_calls()
        _calls[mark] = None
        return run()
    if known is not None:
        its, recorded = known
        return run() if recorded is None or its != like else recorded.repeat(inputs, pointers)
    recorder = thread.recorder = Recorder(inputs)
    try:
        found = run()
    finally:
        thread.recorder = None
    _calls[mark] = like, recorder.call(found, device)
    return found
