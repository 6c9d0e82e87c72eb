"""The bars that the kernels are held to, and which of them are known to be open.

Times are predicted ones. A bar is named by a line of text; those of `open_bars.txt` are known not to hold yet.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_static.cases import Call
from benchmarks.gpu_static.compiling import Compiled
from benchmarks.gpu_static.floors import floor
from benchmarks.gpu_static.prediction import Known, Predicted
from benchmarks.gpu_static.recording import Specialization

OPEN = Path(__file__).parent / "open_bars.txt"
# Microseconds of a call in bfloat16 at the size "gpu".
TIMES = {
    ("token hard", True): 45, ("token soft", True): 65, ("span hard", True): 55, ("span soft", True): 80,
    ("global", True): 40, ("token hard", False): 25, ("token soft", False): 25, ("span hard", False): 25,
    ("span soft", False): 25,
}  # fmt: skip
MOST_LAUNCHES = 4  # each way
OVER_FLOOR = {"significance": 2.2, "float32": 2.5}


@dataclass(frozen=True)
class Bar:
    """One bar: what is found, what is allowed."""

    name: str
    found: float
    allowed: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.found <= self.allowed


def of_times(predicted: dict[Call, Predicted]) -> list[Bar]:
    """Predicted times: in bfloat16 at the base size, in float32 everywhere relative to the floor."""
    found = []
    for call, one in predicted.items():
        if call.dtype == "float32":
            name = f"time over floor: {call.label}, float32, size {call.size}"
            found.append(Bar(name, one.microseconds / floor(call), OVER_FLOOR["float32"], "x"))
        elif call.level == "significance":
            name = f"time over floor: {call.label}, {call.dtype}"
            found.append(Bar(name, one.microseconds / floor(call), OVER_FLOOR["significance"], "x"))
        elif call.size == "gpu" and (call.name, call.backward) in TIMES:
            name = f"time: {call.label}, {call.dtype}, size {call.size}"
            found.append(Bar(name, one.microseconds, TIMES[call.name, call.backward], "us"))
    return found


def of_launches(known: dict[Call, Known]) -> list[Bar]:
    """Kernels that a call starts, PyTorch's own included."""
    found = []
    for call, one in known.items():
        name = f"launches: {call.name}, {call.dtype}, size {call.size}"
        if call.backward:
            found.append(Bar(f"{name}, backward", len(one.launches) - one.forward, MOST_LAUNCHES, "launches"))
        else:
            found.append(Bar(f"{name}, forward", one.forward, MOST_LAUNCHES, "launches"))
    return found


def of_resources(compiled: dict[Specialization, Compiled], target: str) -> list[Bar]:
    """Neither spills nor a stack frame; a kernel's worst specialization stands for it."""
    worst: dict[str, tuple[int, str]] = {}
    for wanted, one in compiled.items():
        name = f"registers: {wanted.kernel}, {wanted.dtype}, {target}"
        size = 1 << 20 if one.refused else max(one.spills, one.stack)
        worst[name] = max(worst.get(name, (0, "")), (size, one.refused))
    return [Bar(name, size, 0, "bytes spilled or stacked") for name, (size, _) in worst.items()]


def known_open() -> set[str]:
    """Names of the bars that are recorded as open."""
    lines = OPEN.read_text(encoding="utf-8").splitlines() if OPEN.exists() else []
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}
