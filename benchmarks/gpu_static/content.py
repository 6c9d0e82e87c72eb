"""The results files: every call with its kernels and the bars; and how far off predictions are of what was measured."""

from dataclasses import asdict

from benchmarks.gpu_static import gates, measured
from benchmarks.gpu_static.compiling import Compiled
from benchmarks.gpu_static.floors import floor
from benchmarks.gpu_static.model import Chip, Constants, Estimate
from benchmarks.gpu_static.operators import Operator
from benchmarks.gpu_static.prediction import Predicted
from benchmarks.gpu_static.recording import Launch

TAKEN = ("registers", "spills", "stack", "shared")  # what a kernel takes of a chip


def of_call(predicted: Predicted, eager: float | None, known: measured.Measured | None, there: Predicted) -> dict:
    """A call as plain data; times in us, bytes as such. there: as predicted for the chip that was measured."""
    call = predicted.call
    kernels = [of_kernel(*row) for row in predicted.rows]
    return {
        "call": asdict(call),
        "shape": list(call.shape),
        "label": call.label,
        "launches": {"forward": predicted.forward, "backward": len(predicted.rows) - predicted.forward},
        "floor_us": _rounded(floor(call)),
        "predicted_us": _rounded(predicted.microseconds),
        "eager_predicted_us": _rounded(eager),
        "measured_us": None if known is None else _rounded(known.whole),
        "predicted_there_us": None if known is None else _rounded(there.microseconds),
        "kernels": kernels,
    }


def of_kernel(launch: Launch | Operator, traced, compiled: Compiled | None, estimate: Estimate) -> dict:
    """A kernel as plain data."""
    found = {
        "name": launch.name,
        "predicted_us": _rounded(estimate.microseconds),
        "bounds_us": {name: _rounded(value) for name, value in estimate.bounds.items()},
        "read_bytes": round(estimate.read),
        "written_bytes": round(estimate.written),
        "level2_bytes": round(estimate.passed),
    }
    if isinstance(launch, Operator) or compiled is None:
        return found | {"pytorch": True}
    return found | {
        "programs": launch.programs,
        "blocks_per_sm": compiled.blocks_per_sm,
        "waves": round(estimate.waves, 2),
        "registers": compiled.registers,
        "spills": compiled.spills,
        "stack": compiled.stack,
        "shared": compiled.shared,
        "warps": compiled.warps,
        "matrix": compiled.matrix,
        "hot_loads": compiled.hot_loads or compiled.loads,
        "hot_stores": compiled.hot_stores or compiled.stores,
        "asynchronous": compiled.asynchronous,
    }


def of_resources(taken: dict[str, dict]) -> list[dict]:
    """Of each kernel and dtype, what its specializations take at most of each target."""
    found: dict[tuple[str, str, str], dict] = {}
    for target, compiled in taken.items():
        for wanted, one in compiled.items():
            most = found.setdefault((wanted.kernel, wanted.dtype, target), dict.fromkeys(TAKEN, 0))
            for name in most:
                most[name] = max(most[name], getattr(one, name))
    return [
        {"kernel": kernel, "dtype": dtype, "target": target} | most for (kernel, dtype, target), most in found.items()
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def of_bars(bars: list[gates.Bar], known_open: set[str]) -> list[dict]:
    """The bars as plain data, the worst first."""
    order = sorted(bars, key=lambda bar: -(bar.found / bar.allowed if bar.allowed else bar.found))
    return [asdict(bar) | {"holds": bar.holds, "known_open": bar.name in known_open} for bar in order]


def of_errors(found: list[measured.Compared]) -> dict:
    """How far off the predictions are: the median, and the share within a quarter."""
    groups: dict[str, list[measured.Compared]] = {"kernels": [], "whole calls": []}
    for one in found:
        groups["whole calls" if one.kernel == "whole call" else "kernels"].append(one)
        groups.setdefault(one.kernel, []).append(one)
    return {
        name: {
            "count": len(members),
            "median": round(measured.typical_error(members), 3),
            "within_25_percent": round(sum(abs(one.error) <= 0.25 for one in members) / len(members), 3),
            "worst": round(max((one.error for one in members), key=abs), 3),
        }
        for name, members in groups.items()
        if members
    }


def of_compared(found: list[measured.Compared]) -> list[dict]:
    """Each kernel that was measured, with what is predicted for caches as in the measurement."""
    return [
        {"call": f"{one.call.label}, {one.call.dtype}, size {one.call.size}", "kernel": one.kernel,
         "measured_us": _rounded(one.measured), "predicted_us": _rounded(one.predicted)}
        for one in found
    ]  # fmt: skip


def of_model(chip: Chip, constants: Constants) -> dict:
    """What the predictions stand on."""
    return {"chip": asdict(chip), "constants": asdict(constants)}


def of_fit(chip: Chip, constants: Constants, found: list[measured.Compared]) -> dict:
    """The fitted model, and how far off it is for what was measured."""
    return {"model": of_model(chip, constants), "errors": of_errors(found), "compared": of_compared(found)}
