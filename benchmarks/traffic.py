"""The time of memory traffic alone, measured in turns with what is compared with it, on the same inputs.

What of the inputs is in the cache depends on what has run before; in turns the traffic finds them as a loss does. Tried
are loads from one place and from four, ordinary stores and stores past the cache, writing after reading and while
reading. The best counts: after a few rounds of each, the one whose median is the lowest runs again.
"""

import ctypes
import statistics
from collections.abc import Sequence

import torch

from . import machine

_PLACES, _PAST_CACHE, _TOGETHER = 1, 2, 4
READING = (0, _PLACES)
WRITING = (0, _TOGETHER, _PAST_CACHE, _PAST_CACHE | _TOGETHER)
_ROUNDS_OF_EACH = 2
_ALIGNMENT = 64  # bytes: stores past the cache need it


class _Rows(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _Share(ctypes.Structure):
    _fields_ = (("reads", ctypes.POINTER(_Rows)), ("read_count", ctypes.c_size_t), ("write", ctypes.c_void_p),
                ("write_bytes", ctypes.c_size_t))  # fmt: skip


class Traffic:
    """Reads rows and writes so many bytes, with as many threads; a call is a round of one kernel.

    Each of `rows` is contiguous. Raises OSError where the C program cannot be compiled or loaded.
    """

    def __init__(self, rows: Sequence[torch.Tensor], written: int, threads: int):
        self._run = _library().traffic
        self._threads = threads
        self._samples: dict[int, list[float]] = {kernel: [] for kernel in (WRITING if written else READING)}
        self._rows = rows  # kept alive, as the memory that is written
        # What was stored in the caches would have to leave them first.
        self.written = [torch.zeros(written + _ALIGNMENT, dtype=torch.uint8) for past_cache in (False, True)]
        self._shares = [self._shares_with(buffer, written) for buffer in self.written]

    def _shares_with(self, buffer: torch.Tensor, written: int) -> ctypes.Array:
        begin = -buffer.data_ptr() % _ALIGNMENT + buffer.data_ptr()
        reads = _divided([(row.data_ptr(), row.nbytes) for row in self._rows], self._threads)
        writes = _divided([(begin, written)], self._threads)
        shares = (_Share * self._threads)()
        for thread, (rows, own) in enumerate(zip(reads, writes, strict=True)):
            shares[thread] = _Share((_Rows * len(rows))(*rows), len(rows), *(own[0] if own else (0, 0)))
        return shares

    def seconds(self) -> float:
        """Run a kernel: the time of the thread that took longest."""
        new = [kernel for kernel, samples in self._samples.items() if len(samples) < _ROUNDS_OF_EACH]
        kernel = new[0] if new else min(self._samples, key=lambda kernel: statistics.median(self._samples[kernel]))
        taken = (ctypes.c_double * self._threads)()
        self._run(self._shares[kernel & _PAST_CACHE > 0], self._threads, kernel, taken)
        self._samples[kernel].append(max(taken))
        return max(taken)

    __call__ = seconds

    def milliseconds(self) -> float:
        """The median of the best kernel."""
        return 1e3 * min(statistics.median(samples) for samples in self._samples.values() if samples)


def _divided(places: list[tuple[int, int]], threads: int) -> list[list[tuple[int, int]]]:
    """Places, each a beginning and its bytes, by thread: every thread has as many bytes as the others, in order."""
    total = sum(size for _, size in places)
    bounds = [total * thread // threads // _ALIGNMENT * _ALIGNMENT for thread in range(threads)] + [total]
    shares: list[list[tuple[int, int]]] = [[] for _ in range(threads)]
    at = 0
    for begin, size in places:
        for thread in range(threads):
            first, last = max(at, bounds[thread]), min(at + size, bounds[thread + 1])
            if first < last:
                shares[thread].append((begin + first - at, last - first))
        at += size
    return shares


def _library() -> ctypes.CDLL:
    path = machine.programs().get("traffic")
    if path is None:
        raise OSError("no C compiler that compiles traffic.c")
    library = ctypes.CDLL(str(path))
    library.traffic.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    library.traffic.restype = None
    return library
