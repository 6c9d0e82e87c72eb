"""Timing of several functions side by side, so that noise of the machine hits all of them alike."""

import time
from collections.abc import Callable

import torch

PERCENTILES = (20, 50, 80)
CACHE_BYTES = 256 * 2**20
# The GPU waits about a millisecond, in which Python gets ahead: its launches are not what is measured.
GPU_LEAD_CYCLES = 2_000_000


def _seconds_cpu(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def seconds_on_gpu(function: Callable[[], object], cache: torch.Tensor | None = None) -> float:
    """Time that the GPU takes; `cache`: memory to overwrite before, so that nothing is found in the GPU's caches."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if cache is not None:
        cache.zero_()
    torch.cuda._sleep(GPU_LEAD_CYCLES)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def round_robin(
    functions: dict[str, Callable[[], object]],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 200,
    device: str = "cpu",
    on_round: Callable[[float], None] = lambda share: None,
) -> dict[str, dict[str, float]]:
    """Time each function once per round, starting each round one further, for about `seconds` in all.

    Returns milliseconds at the 20th, 50th and 80th percentile and the number of rounds, by name. Results are
    freed before the next call; on CUDA the caches are overwritten before each one.
    """
    cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device) if device == "cuda" else None
    names = list(functions)
    for name in names:
        functions[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    begin, rounds = time.perf_counter(), 0
    while rounds < min_rounds or (rounds < max_rounds and time.perf_counter() - begin < seconds):
        for offset in range(len(names)):
            name = names[(rounds + offset) % len(names)]
            run = functions[name]
            samples[name].append(_seconds_cpu(run) if cache is None else seconds_on_gpu(run, cache))
        rounds += 1
        on_round(min(1.0, max(rounds / max_rounds, (time.perf_counter() - begin) / seconds)))
    return {name: summarize(values) for name, values in samples.items()}


def summarize(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds of one function's samples."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1e3
    points = torch.quantile(values, torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64))
    return {f"p{p}": round(v, 4) for p, v in zip(PERCENTILES, points.tolist(), strict=True)} | {
        "rounds": len(seconds)
    }
