"""What the programs of a kernel do, counted while Triton's interpreter runs them.

Runs in a process of its own, with TRITON_INTERPRET=1 set before triton is imported. A program becomes a `Trace`: its
operations in order, each with its amount of work and with what it waits for. Traffic is counted in sectors of 32
bytes, as a GPU moves it.
"""

import contextlib
import importlib.util
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.interpreter import make_fast

SECTOR = 32
HALF = (torch.bfloat16, torch.float16)
_TRITON = importlib.util.find_spec("triton")
NOT_KERNELS = (__file__, *(_TRITON.submodule_search_locations or () if _TRITON else ()))
# Kinds of operations. An amount is in elements; of a load or store in bytes, of a product in multiply-adds.
ALU, ADDRESS, SPECIAL, LOAD, STORE, REDUCE, PRODUCT, BARRIER, WAIT = range(9)
KINDS = ("alu", "address", "special", "load", "store", "reduce", "product", "barrier", "wait")
# Methods of the interpreter's builder that move nothing and compute nothing.
VIEWS = ("create_expand_dims", "create_broadcast", "create_splat", "create_unsplat", "create_trans", "create_reshape",
         "create_bitcast", "create_int_to_ptr", "create_ptr_to_int")  # fmt: skip
FREE = (*VIEWS, "create_make_range", "create_get_program_id", "create_get_num_programs", "create_assert",
        "create_assume", "create_load", "create_store", "create_print", "create_precise_divf_")  # fmt: skip
SPECIALS = ("create_exp", "create_exp2", "create_log", "create_log2", "create_sqrt", "create_precise_sqrt",
            "create_rsqrt", "create_fdiv", "create_precise_divf", "create_sdiv", "create_udiv", "create_srem",
            "create_urem", "create_idiv", "create_sin", "create_cos", "create_frem")  # fmt: skip


@dataclass
class Trace:
    """Operations of a program: (kind, amount, what it waits for, detail).

    detail: of a load (its place in the source, the memory that it is the first in this kernel to touch, or -1); of a
    product (bytes of an operand's element, elements of the operands that no product had before, passes in tf32).
    """

    operations: tuple
    count: int = 1


@dataclass
class Traced:
    """A kernel's run: its programs, alike ones once, and its traffic."""

    name: str
    programs: int
    item: int = 4  # bytes of an element
    traces: list[Trace] = field(default_factory=list)
    # Over all programs.
    requested: int = 0  # bytes that loads ask for
    loaded: int = 0  # sectors of each load, summed
    stored: int = 0
    # Of each memory the sectors that are touched: read, written.
    touched: dict[int, tuple[int, int]] = field(default_factory=dict)


class _Memory:
    """The tensors of a launch by their addresses."""

    def __init__(self, arguments):
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        bases = sorted({(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) for x in tensors})
        self.bases = np.array([base for base, _ in bases], dtype=np.uint64)
        self.read = [np.zeros(size // SECTOR + 2, dtype=bool) for _, size in bases]
        self.written = [np.zeros(size // SECTOR + 2, dtype=bool) for _, size in bases]

    def touch(self, addresses: np.ndarray, writes: bool) -> tuple[int, int]:
        """Sectors of an access, and the memory that most of them are new of (-1: touched before)."""
        place = max(int(np.searchsorted(self.bases, addresses.min(), side="right")) - 1, 0)
        sectors = np.unique((addresses - self.bases[place]) // np.uint64(SECTOR)).astype(np.int64)
        read, written = self.read[place], self.written[place]
        sectors = sectors[sectors < len(written)]
        known = written[sectors] if writes else read[sectors] | written[sectors]
        # What the kernel has written itself is still in the cache.
        (written if writes else read)[sectors[~known]] = True
        return len(sectors), place if len(sectors) and known.mean() < 0.5 else -1

    def summary(self) -> dict[int, tuple[int, int]]:
        """By address: sectors read, and written."""
        return {int(base): (int(read.sum()), int(written.sum()))
                for base, read, written in zip(self.bases, self.read, self.written)}  # fmt: skip


class Tracer:
    """Counts what the interpreter does between `begin` and `end` of a kernel."""

    def __init__(self):
        self.kernel: Traced | None = None
        self.memory: _Memory | None = None
        self.operations: list | None = None
        self.known: dict[tuple, Trace] = {}
        self.inside = 0
        self.half = False
        self.prepared: set[int] = set()

    def begin(self, name: str, programs: int, arguments) -> None:
        """A kernel starts."""
        self.kernel, self.memory = Traced(name, programs), _Memory(arguments)
        self.half = any(isinstance(x, torch.Tensor) and x.dtype in HALF for x in arguments)
        self.kernel.item = 2 if self.half else 4
        self.known, self.operations = {}, None

    def program(self) -> None:
        """A program starts."""
        self._finish_program()
        self.operations, self.prepared = [], set()

    def end(self) -> Traced:
        """The kernel is through."""
        self._finish_program()
        self.kernel.traces = list(self.known.values())
        self.kernel.touched = self.memory.summary()
        return self.kernel

    def _finish_program(self) -> None:
        if self.operations is None:
            return
        key = tuple(self.operations)
        if key in self.known:
            self.known[key].count += 1
        else:
            self.known[key] = Trace(key)

    def add(self, kind: int, amount: float, inputs, detail=None) -> int:
        """One operation; its number."""
        waits = tuple(sorted({x.attr["op"] for x in inputs if "op" in getattr(x, "attr", ())}))
        self.operations.append((kind, amount, waits, detail))
        return len(self.operations) - 1

    def load(self, pointers, mask, inputs) -> int:
        """A load of global memory, where the mask allows it."""
        item = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = pointers.data[mask.data.astype(bool)] if mask is not None else pointers.data.ravel()
        if not addresses.size:
            return self.add(ADDRESS, pointers.data.size, inputs)
        sectors, new = self.memory.touch(addresses, False)
        size = addresses.size * item
        self.kernel.requested += size
        self.kernel.loaded += sectors
        return self.add(LOAD, pointers.data.size * item, inputs, (_place(), new))

    def store(self, pointers, mask, inputs) -> int:
        """A store to global memory, where the mask allows it."""
        item = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = pointers.data[mask.data.astype(bool)] if mask is not None else pointers.data.ravel()
        if addresses.size:
            self.kernel.stored += self.memory.touch(addresses, True)[0]
        return self.add(STORE, pointers.data.size * item, inputs)

    def operands(self, handles) -> int:
        """Elements of a product's operands; of one that a product had before none, it stays prepared."""
        found = 0
        for handle in handles:
            number = handle.attr.get("op", -1)
            if number not in self.prepared:
                found += handle.data.size
            self.prepared.add(number)
        return found


def _place() -> int:
    """Where in the kernel's source an operation stands, through the functions that it is inlined from."""
    lines, frame = [], sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "traced":
        if not frame.f_code.co_filename.startswith(NOT_KERNELS):
            lines.append((frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    return zlib.crc32(repr(lines).encode())


def _handles(arguments) -> list:
    found = []
    for value in arguments:
        if isinstance(value, (list, tuple)):
            found += _handles(value)
        elif hasattr(value, "data") and hasattr(value, "attr"):
            found.append(value)
    return found


def _wrap(tracer: Tracer, name: str, method):
    def wrapped(*arguments, **keywords):
        if tracer.operations is None or tracer.inside:
            return method(*arguments, **keywords)
        inputs = _handles(arguments)
        if name == "create_masked_load":
            number = tracer.load(arguments[0], arguments[1], inputs)
        elif name == "create_masked_store":
            number = tracer.store(arguments[0], arguments[2], inputs)
        else:
            number = None
        detail = ""
        if name == "create_dot":
            detail = str(arguments[3]).upper()
            arguments = (*(_widened(x) for x in arguments[:2]), *arguments[2:])
        tracer.inside += 1
        try:
            result = method(*arguments, **keywords)
        finally:
            tracer.inside -= 1
        if number is None:
            number = _computed(tracer, name, inputs, result, detail)
        if number is not None and hasattr(result, "attr"):
            result.attr["op"] = number
        return result

    return wrapped


def _widened(operand):
    """An operand as the interpreter can multiply it: it takes the bits of bfloat16 for integers."""
    from triton.runtime import interpreter

    if operand.dtype.scalar != interpreter.tl.bfloat16:
        return operand
    bits = operand.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)


def _computed(tracer: Tracer, name: str, inputs, result, detail: str) -> int | None:
    """Records what neither loads nor stores; views have the number of what they show."""
    if name in FREE:
        known = [x.attr["op"] for x in inputs if "op" in x.attr]
        return max(known, default=None) if name in VIEWS else None
    if name == "create_dot":
        left = inputs[0].data
        # How many products of tf32 one of float32 is; 0: none, it is made of multiply-adds.
        passes = 3 if "X3" in detail else 0 if "IEEE" in detail else 1
        # The interpreter's products are of wider elements, where the kernel has bfloat16.
        item = 2 if tracer.half else inputs[0].dtype.primitive_bitwidth // 8
        return tracer.add(
            PRODUCT, result.data.size * left.shape[-1], inputs, (item, tracer.operands(inputs[:2]), passes)
        )
    if name == "create_barrier":
        return tracer.add(BARRIER, 1, inputs)
    if name.startswith("create_atomic"):
        return tracer.add(BARRIER, 10, inputs)
    if not hasattr(result, "data"):
        return None
    if name in SPECIALS:
        kind = SPECIAL
    else:
        kind = ADDRESS if result.data.dtype.kind in "iub" and not result.dtype.is_floating() else ALU
    return tracer.add(kind, result.data.size, inputs, result.data.ndim if kind == ADDRESS else None)


def _wrap_reduction(tracer: Tracer, kind: int, apply):
    def wrapped(self, values):
        if tracer.operations is None or tracer.inside:
            return apply(self, values)
        tensors = values if isinstance(values, tuple) else (values,)
        inputs = [x.handle for x in tensors]
        number = tracer.add(kind, sum(x.data.size for x in inputs), inputs, self.axis)
        tracer.inside += 1
        try:
            found = apply(self, values)
        finally:
            tracer.inside -= 1
        for value in found if isinstance(found, tuple) else (found,):
            value.handle.attr["op"] = number
        return found

    return wrapped


@contextlib.contextmanager
def tracing(tracer: Tracer) -> Iterator[None]:
    """Inside, the interpreter tells the tracer what it does."""
    from triton.runtime import interpreter

    make_fast()
    builder = interpreter.interpreter_builder
    patch = interpreter._patch_lang

    def patch_lang(function):
        scope = patch(function)
        if scope is not None:
            for method in ("__index__", "__bool__"):
                scope.set_attr(interpreter.tl.tensor, method, waiting(getattr(interpreter.tl.tensor, method)))
        return scope

    def waiting(convert):
        def converted(value):
            if tracer.operations is not None and not tracer.inside and "op" in value.handle.attr:
                tracer.add(WAIT, 0, [value.handle])
            return convert(value)

        return converted

    original_index = builder.set_grid_idx

    def set_grid_idx(x, y, z):
        original_index(x, y, z)
        tracer.program()

    with contextlib.ExitStack() as stack:
        for name in dir(builder):
            if name.startswith("create_") and name not in ("create_load", "create_store"):
                wrapped = _wrap(tracer, name, getattr(builder, name))
                stack.enter_context(mock.patch.object(builder, name, wrapped))
        stack.enter_context(mock.patch.object(builder, "set_grid_idx", set_grid_idx))
        stack.enter_context(mock.patch.object(interpreter, "_patch_lang", patch_lang))
        reduce, scan = interpreter.ReduceOps, interpreter.ScanOps
        stack.enter_context(mock.patch.object(reduce, "apply", _wrap_reduction(tracer, REDUCE, reduce.apply)))
        stack.enter_context(mock.patch.object(scan, "apply", _wrap_reduction(tracer, REDUCE, scan.apply)))
        yield


@contextlib.contextmanager
def kernels_traced(found: list) -> Iterator[None]:
    """Inside, a Triton kernel runs in the interpreter, and what it did goes to `found`; so do its tensors."""
    from triton.runtime import interpreter

    from pad_kernels.backends.triton import common

    tracer = Tracer()
    run = interpreter.GridExecutor.__call__
    kept: list[Any] = []  # so that an address stays that of one tensor

    def traced(executor, *arguments, **keywords):
        kept.append(arguments)
        grid = executor.grid
        if callable(grid):
            grid = grid(dict(zip(executor.arg_names, arguments)) | keywords)
        programs = int(np.prod(grid))
        tracer.begin(executor.fn.__name__, programs, arguments)
        run(executor, *arguments, **keywords)
        found.append(tracer.end())

    with (
        tracing(tracer),
        # Neither the kernels' own detours around the interpreter's bfloat16 nor their cost.
        mock.patch.object(common, "INTERPRETED", interpreter.tl.constexpr(False)),
        mock.patch.object(interpreter.GridExecutor, "__call__", traced),
    ):
        yield
