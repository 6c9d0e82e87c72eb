"""Timing of several functions side by side, so that noise of the machine hits all of them alike."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .accelerator import Call, Device, DeviceLostError, GpuSeconds

PERCENTILES = (20, 50, 80)


@dataclass
class Timings:
    """By name: milliseconds (see `summarize`), and the error of each function that failed."""

    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def attempt(name: str, call: Callable[[], object], device: Device) -> tuple[object, str | None]:
    """Result of a call and None, or None and its error in a line; DeviceLostError if the device is lost with it."""
    try:
        return call(), None
    except Exception as error:  # whatever a compiler, a driver or a package may raise
        lines = str(error).strip().splitlines() or [""]
        failure = f"{type(error).__name__}: {lines[0]}"[:400]
    try:  # outside of the handler, which would keep the failed call's tensors alive
        device.recover()
    except Exception as error:
        raise DeviceLostError(name, failure) from error
    return None, failure


def round_robin(
    functions: dict[str, Call],
    device: Device,
    *,
    seconds: float,
    measure: Callable[[Call], float] | None = None,
    min_rounds: int = 5,
    max_rounds: int = 200,
) -> Timings:
    """Time each function once per round, in an order that changes, for about `seconds` in all.

    What runs before a function decides what it finds in the caches, and so each follows each other one as often.
    `measure`: seconds of a call; by default the device's. A function with a method `seconds` says itself how long it
    took. Results are freed before the next call. A function that fails takes no further part.
    """
    measure = measure or device.seconds
    order = random.Random(0)
    found = Timings()
    samples: dict[str, list[float]] = {name: [] for name in functions}

    def run(name: str, call: Callable[[], object]) -> object:
        result, failure = attempt(name, call, device)
        if failure is not None:
            found.failures[name] = failure
        return result

    for name, function in functions.items():
        run(name, function)
    begin, rounds = time.perf_counter(), 0
    while rounds < min_rounds or (rounds < max_rounds and time.perf_counter() - begin < seconds):
        names = [name for name in functions if name not in found.failures]
        if not names:
            break
        for name in order.sample(names, len(names)):
            function = functions[name]
            own_clock = getattr(function, "seconds", None)
            sample = run(name, own_clock or (lambda function=function: measure(function)))
            if sample is not None:
                samples[name].append(sample)
        rounds += 1
    found.milliseconds = {name: summarize(samples[name]) for name in functions if name not in found.failures}
    return found


def summarize(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds of one function's samples; late: of times of a GPU, the share that are late."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1e3
    points = torch.quantile(values, torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64))
    found = {f"p{p}": round(v, 4) for p, v in zip(PERCENTILES, points.tolist(), strict=True)}
    found["rounds"] = len(seconds)
    late = [sample.late for sample in seconds if isinstance(sample, GpuSeconds)]
    return found | ({"late": round(sum(late) / len(late), 3)} if late else {})
