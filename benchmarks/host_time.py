"""Time of the host around a Triton call, and launches per call: `python -m benchmarks.host_time [--check]`.

Needs triton, but no GPU: compiled kernels are replaced by a counter, and the tensors lie on the CPU. The time is that
of Python and torch alone; what the driver takes to start a kernel is not in it.
Launches are Triton kernels and operators of torch that run a kernel. Times are the fastest of many calls: the rest is
what else the machine does.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes a line for each of its runs

import torch

from pad_kernels.inputs import LEVELS

from .cases import SIZES, TEMPERATURES

# At most, of a call: microseconds and launches.
BARS = {"forward": (60.0, 4), "backward": (50.0, 4)}
# Operators that run no kernel on a GPU.
WITHOUT_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        "alias", "as_strided", "chunk", "detach", "empty", "empty_like", "empty_strided", "expand", "flatten",
        "narrow", "reshape", "resolve_conj", "resolve_neg", "result_type", "select", "set_", "slice", "split",
        "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
    )
)  # fmt: skip


class Counter:
    """Stands in for the launch of every Triton kernel."""

    def __init__(self) -> None:
        self.launches = 0

    def compile(self, *arguments: object, **options: object) -> "Counter":
        """A kernel's first launch; nothing is compiled."""
        self.launches += 1
        return self

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return self._start

    def _start(self, *arguments: object) -> None:
        self.launches += 1


@contextmanager
def stubbed(counter: Counter) -> Iterator[None]:
    """The Triton backend takes CPU tensors, and runs no kernel."""
    from triton.runtime.jit import JITFunction

    from pad_kernels import backends
    from pad_kernels.backends.triton import TritonBackend, common

    run, reason = JITFunction.run, TritonBackend.unsupported_reason
    JITFunction.run = lambda self, *arguments, **options: counter.compile(*arguments, **options)
    TritonBackend.unsupported_reason = lambda self, op, device, dtype, width=None: None
    backends.forget_candidates()
    try:
        yield
    finally:
        JITFunction.run, TritonBackend.unsupported_reason = run, reason
        backends.forget_candidates()
        common.forget_compiled()


def make_loss(size: str, level: str, temperature: float) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    """A loss with masks and priors, spans to be chosen; and what it is differentiated by."""
    from pad_kernels import pad_loss

    batch, frames, tokens, width = SIZES[size]
    sides = [torch.randn(batch, length, width, requires_grad=True) for length in (frames, tokens)]
    masks = [torch.ones(batch, length, dtype=torch.bool) for length in (frames, tokens)]
    priors = [torch.rand(batch, length) for length in (frames, tokens)]
    options = {"level": level, "temperature": temperature, "backend": "triton"}
    return lambda: pad_loss(*sides, *masks, *priors, **options), sides


def launches(call: Callable[[], object], counter: Counter) -> int:
    """Triton kernels and operators with a kernel in one call."""
    before = counter.launches
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    operators = [event for event in profile.events() if event.name.startswith("aten::") and not event.cpu_children]
    return counter.launches - before + sum(event.name not in WITHOUT_KERNEL for event in operators)


def measure(size: str, level: str, temperature: float, calls: int) -> dict[str, tuple[float, int]]:
    """Microseconds and launches of forward and backward."""
    counter = Counter()
    with stubbed(counter):
        forward, sides = make_loss(size, level, temperature)

        def backward(loss: torch.Tensor) -> object:
            return torch.autograd.grad(loss, sides)

        times: dict[str, list[float]] = {"forward": [], "backward": []}
        for _ in range(calls):
            begin = time.perf_counter()
            loss = forward()
            middle = time.perf_counter()
            backward(loss)
            times["forward"].append(middle - begin)
            times["backward"].append(time.perf_counter() - middle)
        counts = {"forward": launches(forward, counter)}
        loss = forward()
        counts["backward"] = launches(lambda: backward(loss), counter)
    return {direction: (min(found) * 1e6, counts[direction]) for direction, found in times.items()}


def main() -> int:
    """Prints a row for each level and mode. With --check: 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000, help="timed calls of each case (default: %(default)s)")
    parser.add_argument("--size", default="tiny", choices=SIZES, help="of the inputs (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a call takes more than the bars")
    options = parser.parse_args()
    torch.set_num_threads(1)
    missed = 0
    print(f"{'level':8} {'mode':5} {'direction':10} {'us':>7} {'bar':>5} {'launches':>9} {'bar':>4}")
    for level in LEVELS:
        for mode, temperature in {"": 0.0}.items() if level == "global" else TEMPERATURES.items():
            for direction, (microseconds, count) in measure(options.size, level, temperature, options.calls).items():
                most_time, most_launches = BARS[direction]
                wrong = microseconds > most_time or count > most_launches
                missed += wrong
                row = f"{level:8} {mode:5} {direction:10} {microseconds:7.1f} {most_time:5.0f}"
                print(f"{row} {count:9} {most_launches:4}{'  missed' if wrong else ''}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
