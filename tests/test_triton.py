"""The Triton backend: its kernels under Triton's interpreter, in a process of their own, and what it refuses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.host_time import Counter, stubbed
from pad_kernels import pad_loss

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
FOLDER = Path(__file__).parent


@pytest.mark.parametrize(
    "file", ["triton_interpreted", "triton_interpreted_losses", "triton_interpreted_calls", "triton_interpreted_ops"]
)
def test_kernels_under_the_interpreter(file):
    """In a process of its own: the interpreter has to be chosen before triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / f"{file}.py"]
    child = subprocess.run(command, env=environment, cwd=FOLDER, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]


def test_the_package_does_not_import_triton():
    code = "import sys, pad_kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "op, device, dtype, width, reason",
    [
        ("alignment_forward", "cuda", torch.bfloat16, 768, None),
        ("alignment_backward", "cuda", torch.float32, 2048, None),
        ("significance", "cuda", torch.float16, 80, None),
        ("significance", "cuda", torch.float16, None, None),
        ("select_spans", "cuda", torch.float32, None, None),
        ("kernels", "cuda", torch.float32, None, "no kernels"),
        ("alignment_forward", "cpu", torch.float32, 768, "on cuda, not on cpu"),
        ("alignment_forward", "cuda", torch.float64, 768, "not torch.float64"),
        ("alignment_forward", "cuda", torch.float32, 2056, "multiples of 8 up to 2048, not 2056"),
        ("alignment_forward", "cuda", torch.float32, 36, "multiples of 8 up to 2048, not 36"),
        ("significance", "cuda", torch.float32, 8, "16 to 256 columns, not 8"),
        ("significance", "cuda", torch.float32, 264, "16 to 256 columns, not 264"),
    ],
)
def test_unsupported_reason(op, device, dtype, width, reason):
    from pad_kernels.backends.triton import BACKEND

    found = BACKEND.unsupported_reason(op, torch.device(device), dtype, width)
    assert found is None if reason is None else reason in found


def test_choices_depend_on_sizes_alone():
    from pad_kernels.backends.triton import configurations

    for table in (
        configurations.SCORE,
        configurations.SPAN_SCORES,
        configurations.UNIT_GRADIENT,
        configurations.UNIT_GRADIENT_SPANS,
        configurations.TEXT_GRADIENT,
        configurations.TEXT_GRADIENT_SPANS,
    ):
        for dtype in (torch.float32, torch.float16):
            for tokens in (1, 31, 32, 33, 64, 65, 1000):
                blocks = configurations.by_tokens(table, dtype, tokens)
                assert blocks.tokens >= min(tokens, max(table[dtype.itemsize]))
    assert configurations.significance_blocks(torch.bfloat16, 64).width == 64
    assert configurations.significance_blocks(torch.bfloat16, 65).width == 128


def test_buffers_share_an_allocation():
    from pad_kernels.backends.triton.memory import layout, operand

    room = layout((torch.float32, 3, 5), None, (torch.int64, 7), (torch.bfloat16, 0), (torch.uint8, 2))
    memory = room.allocate(torch.device("cpu"))
    buffers = room.buffers(memory)
    found = [buffer and buffer.tensor() for buffer in buffers]
    assert found[1] is None and [x.shape for x in found if x is not None] == [(3, 5), (7,), (0,), (2,)]
    assert [x.dtype for x in found if x is not None] == [torch.float32, torch.int64, torch.bfloat16, torch.uint8]
    for value, tensor in enumerate(x for x in found if x is not None):
        tensor.fill_(value)
    assert (found[0] == 0).all() and (found[2] == 1).all() and (found[4] == 3).all()
    for buffer, tensor in zip(buffers, found):
        if buffer is not None and tensor.numel():
            assert buffer.pointer == tensor.data_ptr() and (buffer.pointer - memory.data_ptr()) % 256 == 0
    values = torch.arange(9, dtype=torch.bfloat16)
    assert operand(values).kind == torch.bfloat16 and operand(values[1:]).kind == (torch.bfloat16,)
    mask = torch.tensor([True, False])
    assert operand(mask, torch.uint8).tensor().tolist() == [1, 0] and operand(None) is None


class Kernel:
    """Stands in for a kernel of Triton: takes down how it is compiled, and how it is started again."""

    arg_names = ("values", "size", "other", "factor", "BLOCK")

    def __init__(self):
        self.compiled, self.started = [], []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            if options:
                self.compiled.append((arguments, options))
                return self
            self.started.append((grid, arguments))

        return run


def test_a_compiled_kernel_is_started_directly():
    from pad_kernels.backends.triton.common import forget_compiled, launch
    from pad_kernels.backends.triton.memory import operand

    kernel, memory = Kernel(), torch.zeros(64)

    def start(values=memory, size=5, other=None, factor=0.5, block=8, warps=4):
        operands = operand(values), size, operand(other), factor
        launch(kernel, values.device, 3, *operands, warps=warps, stages=1, BLOCK=block)
        return len(kernel.compiled), len(kernel.started)

    try:
        assert start() == (1, 0)
        tensors, options = kernel.compiled[0]
        assert tensors[0] is memory and options == {"BLOCK": 8, "num_warps": 4, "num_stages": 1}
        assert start(memory[4:], size=6, factor=1.5) == (1, 1)
        assert kernel.started == [((3, 1, 1), (memory[4:].data_ptr(), 6, None, 1.5, 8))]
        # What Triton compiles for: alignment, dtype, being there, 1, multiples of 16, more than 32 bits, constants.
        others = [{"values": memory[1:]}, {"values": memory.double()}, {"other": memory}, {"size": 1}, {"size": 32},
                  {"size": 2**31 + 1}, {"block": 16}, {"warps": 8}]  # fmt: skip
        for number, change in enumerate(others, start=2):
            assert start(**change) == (number, number - 1), change
            assert start(**change) == (number, number), change
    finally:
        forget_compiled()


class Starts(Counter):
    """Takes down what is started, and with what."""

    def __init__(self):
        super().__init__()
        self.started = []

    def __getitem__(self, grid):
        return lambda *arguments: self.started.append((grid, arguments))


@pytest.mark.parametrize("level, spans", [("global", False), ("token", False), ("span", False), ("span", True)])
@pytest.mark.parametrize("temperature", [0.0, 0.1], ids=["hard", "soft"])
def test_a_repeated_call_starts_what_a_recorded_one_did(level, temperature, spans, monkeypatch):
    """The same kernels with the same numbers, and pointers to the same places of its own memory."""
    memories = []

    def noting(name):
        make = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *args, **options: memories.append(make(*args, **options)) or memories[-1]
        )

    def place(value):
        for number, memory in enumerate(memories):
            if type(value) is int and 0 <= value - memory.data_ptr() < max(memory.nbytes, 1):
                return number, value - memory.data_ptr()
        return value

    def call(seed):
        generator = torch.Generator().manual_seed(seed)
        sides = [torch.randn(2, length, 16, generator=generator).requires_grad_() for length in (20, 4)]
        others = [torch.rand(2, length, generator=generator) for length in (20, 4)]
        others = [x > 0.2 for x in others] + others
        bounds = [torch.full((2, 7), seed + past, dtype=torch.int32) for past in (0, 2)]
        grad = torch.ones(())
        memories[:] = *sides, *others, *bounds, grad
        given = {"spans": tuple(bounds)} if spans else {}
        starts.started.clear()
        loss = pad_loss(*sides, *others, level=level, temperature=temperature, backend="triton", **given)
        torch.autograd.grad(loss, sides, grad)
        return [(grid, [*map(place, arguments)]) for grid, arguments in starts.started]

    starts = Starts()
    with stubbed(starts):
        noting("empty")
        noting("empty_strided")
        assert call(0) == []  # all is compiled
        recorded = call(1)
        count = len(memories)
        assert len(recorded) >= 3
        for seed in (2, 3):
            assert call(seed) == recorded and len(memories) == count
    assert any(offset for _, arguments in recorded for _, offset in filter(lambda x: isinstance(x, tuple), arguments))
