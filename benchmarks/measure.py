"""All that is measured of a set of calls on the same inputs: a row for each, and a row with its error where one fails.

Of a row: `ms`, time (on a GPU, of the GPU; but waits for the host are part of the share `late` of the samples), and on
a GPU `wall_ms`, what a user waits for; `graph_ms`, replay of a CUDA graph of the call; `peak_bytes`, beyond what was
allocated; `kernels`. What could not be had is None, and `errors` says why. `failure`: why nothing could be measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from .accelerator import Call, Device
from .timing import attempt, round_robin

PROFILED_CALLS = 3
KERNELS_KEPT = 24
# Their own replay of CUDA graphs can neither be captured in another graph nor seen in torch's statistics of memory.
REPLAYS_GRAPHS_ITSELF = "torch.compile with max-autotune replays CUDA graphs itself"


@dataclass(frozen=True)
class Plan:
    """How long to measure, and what not to try."""

    seconds: float
    min_rounds: int = 5
    profiled: Callable[[str], bool] = lambda name: True
    own_graphs: frozenset[str] = field(default_factory=frozenset)
    not_captured: str = ""  # why no call is captured in a CUDA graph


def failed_row(failure: str, unavailable: bool = False) -> dict:
    """The row of a provider that could not be measured."""
    return {"ms": None, "error": {}, "correct": False, "peak_bytes": None, "extra_bytes": None, "failure": failure,
            "unavailable": unavailable}  # fmt: skip


def measure(calls: dict[str, Call], device: Device, plan: Plan) -> dict[str, dict]:
    """A row for each call, by name."""
    share = 0.5 if device.is_gpu else 1.0
    timed = round_robin(calls, device, seconds=share * plan.seconds, min_rounds=plan.min_rounds)
    rows = {name: failed_row(timed.failures[name]) if name in timed.failures
            else {"ms": timed.milliseconds[name], "peak_bytes": None} for name in calls}  # fmt: skip
    if device.is_gpu:
        running = {name: call for name, call in calls.items() if name in timed.milliseconds}
        for name in running:
            rows[name] |= {"wall_ms": None, "graph_ms": None, "kernels": [], "errors": {}}
        _add_times("wall_ms", running, rows, device, plan, device.wall_seconds)
        for name, call in running.items():
            _add_memory_and_kernels(name, call, rows[name], device, plan)
        _add_graphs(running, rows, device, plan)
    return rows


def _add_times(column: str, calls: dict[str, Call], rows: dict, device: Device, plan: Plan, clock=None) -> None:
    found = round_robin(calls, device, seconds=plan.seconds / 4, min_rounds=plan.min_rounds, measure=clock)
    for name, milliseconds in found.milliseconds.items():
        rows[name][column] = milliseconds
    for name, failure in found.failures.items():
        rows[name]["errors"][column] = failure


def _add_memory_and_kernels(name: str, call: Call, row: dict, device: Device, plan: Plan) -> None:
    if name in plan.own_graphs:
        row["errors"]["peak_bytes"] = REPLAYS_GRAPHS_ITSELF
    else:
        row["peak_bytes"], failure = attempt(name, lambda: device.peak_bytes(call), device)
        if failure is not None:
            row["errors"]["peak_bytes"] = failure
    if plan.profiled(name):
        found, failure = attempt(name, lambda: kernels(call, device), device)
        row["kernels"] = found or []
        if not found:
            row["errors"]["kernels"] = failure or "the profiler saw no kernel"


def _add_graphs(calls: dict[str, Call], rows: dict, device: Device, plan: Plan) -> None:
    replays = {}
    for name, call in calls.items():
        captured, failure = None, REPLAYS_GRAPHS_ITSELF if name in plan.own_graphs else plan.not_captured
        if not failure:
            captured, failure = attempt(name, lambda call=call: device.capture(call), device)
        if failure is None:
            replays[name] = captured[1]
        else:
            rows[name]["errors"]["graph_ms"] = failure
    _add_times("graph_ms", replays, rows, device, plan)


def kernels(call: Call, device: Device) -> list[dict]:
    """Name, launches and microseconds of each kernel of a call, the longest first."""
    call()
    device.synchronize()
    with device.profile() as profiler:
        for _ in range(PROFILED_CALLS):
            call()
        device.synchronize()
    found = []
    for event in profiler.key_averages():
        microseconds = device.kernel_microseconds(event)
        if microseconds is not None:
            found.append({"name": event.key[:120], "calls": event.count / PROFILED_CALLS,
                          "us": round(microseconds / PROFILED_CALLS, 3)})  # fmt: skip
    return sorted(found, key=lambda kernel: -kernel["us"])[:KERNELS_KEPT]


def add_bandwidth(kernels: list[dict], bytes_of: Callable[[str], float | None], read_gbs: float) -> None:
    """GB/s of each kernel whose traffic is known, and the share that is of what the machine reads in that time."""
    for kernel in kernels:
        traffic = bytes_of(kernel["name"])
        known = traffic is not None and kernel["us"] > 0
        kernel["gbs"] = round(traffic / kernel["us"] / 1e3, 1) if known else None
        kernel["floor_share"] = round(kernel["gbs"] / read_gbs, 3) if known else None
