"""Where a benchmark runs: the CPU, a GPU, or a dry run of the GPU's way on the CPU.

All that is asked of torch.cuda beyond tensors stands in `Cuda`. `DryRun` answers the same questions on a CPU, so that
a run on a GPU can be rehearsed to its end without one; its figures mean nothing.
"""

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from benchmarks import interpreter

Call = Callable[[], object]
CACHE_BYTES = 256 * 2**20
# The GPU waits, at first about half a millisecond, while Python launches: launches are not what is measured.
FIRST_LEAD_CYCLES = 1_000_000
LAST_LEAD_CYCLES = 16_000_000


class GpuSeconds(float):
    """A time between two events. late: the launches outlasted the lead, so it includes waits for the host."""

    late: bool

    def __new__(cls, seconds: float, late: bool):
        self = super().__new__(cls, seconds)
        self.late = late
        return self


class DeviceLostError(RuntimeError):
    """The GPU answers no more in this process, after an illegal access for example."""

    def __init__(self, provider: str, reason: str):
        super().__init__(f"{provider}: {reason}")
        self.provider, self.reason = provider, reason


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Cpu:
    """The processor: time is what a clock says, and memory is measured in a process apart (benchmarks.memory)."""

    name = tensors = "cpu"
    is_gpu = False
    min_rounds = 5

    def missing(self) -> str | None:
        """Why this device cannot be used here; None where it can."""
        return None

    def describe(self) -> dict:
        """What goes into a results file beside the processor."""
        return {}

    def seconds(self, call: Call) -> float:
        """Time of a call."""
        return _seconds(call)

    def recover(self) -> None:
        """After a failure: free what it left behind."""
        gc.collect()


class Cuda:
    """A GPU. Caches are overwritten before each timed call, so that nothing is found there."""

    name = tensors = "cuda"
    is_gpu = True
    min_rounds = 5

    def __init__(self):
        self._cache: torch.Tensor | None = None
        self._lead = FIRST_LEAD_CYCLES

    def missing(self) -> str | None:
        """Why this device cannot be used here; None where it can."""
        return None if torch.cuda.is_available() else "torch sees no CUDA device here"

    def describe(self) -> dict:
        """Name, memory and CUDA version for a results file."""
        properties = torch.cuda.get_device_properties(0)
        return {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}

    def synchronize(self) -> None:
        """Wait until the GPU has nothing left to do."""
        torch.cuda.synchronize()

    def _clear_caches(self) -> None:
        if self._cache is None:
            self._cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
        self._cache.zero_()

    def seconds(self, call: Call) -> GpuSeconds:
        """Time that the GPU takes: between two events, with a lead in which all is launched.

        A lead that ends before the launches do is doubled, up to LAST_LEAD_CYCLES (some 8 ms), and the call timed
        again. What takes longer to launch than that, such as a training step, is marked as late.
        """
        while True:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._clear_caches()
            torch.cuda._sleep(self._lead)
            begin.record()
            call()
            late = begin.query()
            end.record()
            end.synchronize()
            if not late or self._lead >= LAST_LEAD_CYCLES:
                return GpuSeconds(begin.elapsed_time(end) / 1e3, late)
            self._lead *= 2

    def wall_seconds(self, call: Call) -> float:
        """Time that a user waits: from an idle GPU until the result is there."""
        self._clear_caches()
        self.synchronize()
        return _seconds(lambda: (call(), self.synchronize()))

    def capture(self, call: Callable[[], object]) -> tuple[object, Call]:
        """A CUDA graph of a call: the result, which every replay overwrites, and the function that replays.

        Raises where the call cannot be captured; one that waits for the GPU is not even tried, since a capture that
        fails half way leaves torch's random generator unusable.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
            with self.no_waiting():
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        return result, graph.replay

    @contextmanager
    def no_waiting(self):
        """Inside, whatever waits for the GPU raises RuntimeError."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextmanager
    def another_stream(self):
        """Inside, work goes to a new stream, which has waited for the current one; at the end it is waited for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def peak_bytes(self, call: Call) -> int:
        """Bytes by which memory peaks during a call that has been made before."""
        self.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def memory_in_use(self) -> tuple[int, int]:
        """Bytes in tensors, and bytes that all of the GPU has left."""
        self.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]

    def profile(self) -> AbstractContextManager:
        """torch.profiler, for the kernels alone."""
        return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def kernel_microseconds(self, event) -> float | None:
        """Time of a profiled event on the GPU; None for what did not run there."""
        return event.self_device_time_total if event.device_type == torch.autograd.DeviceType.CUDA else None

    def recover(self) -> None:
        """After a failure: free what it left behind; RuntimeError if the GPU answers no more."""
        gc.collect()
        self.synchronize()
        torch.cuda.empty_cache()


class DryRun:
    """The questions of `Cuda`, answered on the CPU."""

    name = "dry-run"
    tensors = "cpu"
    is_gpu = True
    min_rounds = 1

    def __init__(self):
        interpreter.make_fast()

    def missing(self) -> str | None:
        """Never missing."""
        return None

    def describe(self) -> dict:
        """Says in the results file that nothing was measured."""
        return {"gpu": "none, dry run on the CPU", "gpu_memory_bytes": 0, "cuda": None}

    def synchronize(self) -> None:
        """Nothing runs behind Python's back."""

    def seconds(self, call: Call) -> GpuSeconds:
        """Time on the CPU."""
        return GpuSeconds(_seconds(call), late=False)

    def wall_seconds(self, call: Call) -> float:
        """Time on the CPU."""
        return _seconds(call)

    def capture(self, call: Callable[[], object]) -> tuple[object, Call]:
        """The call's tensors, and a function that calls again and overwrites them."""
        result = call()
        kept = result if isinstance(result, (tuple, list)) else (result,)

        def replay() -> None:
            again = call()
            for buffer, fresh in zip(kept, again if isinstance(again, (tuple, list)) else (again,), strict=True):
                if isinstance(buffer, torch.Tensor):
                    buffer.data.copy_(fresh.data)

        return result, replay

    def no_waiting(self) -> AbstractContextManager:
        """Nothing waits."""
        return nullcontext()

    def another_stream(self) -> AbstractContextManager:
        """There is one stream."""
        return nullcontext()

    def peak_bytes(self, call: Call) -> int:
        """Makes the call; its memory is not measured."""
        call()
        return 0

    def memory_in_use(self) -> tuple[int, int]:
        """Not measured."""
        return 0, 0

    def profile(self) -> AbstractContextManager:
        """torch.profiler of the CPU: operators in the place of kernels."""
        return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def kernel_microseconds(self, event) -> float | None:
        """Time of a profiled operator."""
        return event.self_cpu_time_total

    def recover(self) -> None:
        """After a failure: free what it left behind."""
        gc.collect()


Device = Cpu | Cuda | DryRun
DEVICES = {device.name: device for device in (Cpu, Cuda, DryRun)}
DEVICE_HELP = "dry-run: the way of a run on a GPU, on the CPU and without meaning, to test the benchmark (default: cpu)"


def get(name: str) -> Device:
    """The device of a name in DEVICES."""
    return DEVICES[name]()
