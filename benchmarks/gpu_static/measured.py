"""Times measured on a GPU beside predicted ones."""

import functools
import math
import statistics
from dataclasses import dataclass

from benchmarks import results
from benchmarks.gpu_static import model
from benchmarks.gpu_static.cases import Call
from benchmarks.gpu_static.operators import Operator
from benchmarks.gpu_static.prediction import Known, predict

FILES = ("align_cuda.json", "significance_cuda.json")


@dataclass(frozen=True)
class Measured:
    """Times in us: of a call on the GPU, and of each of its kernels in a profile."""

    call: Call
    whole: float
    kernels: dict[str, float]


@functools.cache
def measured_calls(folder=results.FOLDER) -> dict[Call, Measured]:
    """The committed measurements of the calls of the table."""
    found = {}
    for name in FILES:
        for result in results.read_json(folder / name)["results"]:
            case, row = result["case"], result["providers"].get("ours")
            if row is None or not row.get("ms"):
                continue
            if "level" in case:
                label = " ".join(filter(None, (case["level"], case["mode"])))
                call = Call(label, case["size"], case["dtype"], case["direction"] != "forward")
            else:
                call = Call("significance", "gpu", case["dtype"])
            kernels: dict[str, float] = {}
            for kernel in row["kernels"]:
                kernels[kernel["name"]] = kernels.get(kernel["name"], 0.0) + kernel["us"]
            found[call] = Measured(call, row["ms"]["p50"] * 1e3, kernels)
    return found


@functools.cache
def measured_chip(folder=results.FOLDER) -> model.Chip:
    """The chip that they were measured on."""
    name = results.read_json(folder / FILES[0])["machine"]["gpu"]
    return next(chip for known, chip in model.CHIPS.items() if known in name)


@dataclass(frozen=True)
class Compared:
    """One kernel of a call, or the whole call: measured and predicted us."""

    call: Call
    kernel: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """By how much the prediction is off, relative to what was measured."""
        return self.predicted / self.measured - 1


def compare(known: dict[Call, Known], constants: model.Constants, whole: bool = True):
    """Each kernel and each call that was measured. A profile repeats the call, so that the caches are warm."""
    found, chip = [], measured_chip()
    for call, measured in measured_calls().items():
        if call not in known:
            continue
        predicted: dict[str, float] = {}
        for launch, _, _, estimate in predict(call, known[call], chip, constants, warm=True).rows:
            if not isinstance(launch, Operator):
                predicted[launch.name] = predicted.get(launch.name, 0.0) + estimate.microseconds
        for name, value in measured.kernels.items():
            # The spans were given in the measurement: prepare_kernel did not choose them.
            if name in predicted and not (name == "prepare_kernel" and call.level == "span"):
                found.append(Compared(call, name, value, predicted[name]))
        if whole and call.level != "span":
            cold = predict(call, known[call], chip, constants).microseconds
            found.append(Compared(call, "whole call", measured.whole, cold))
    return found


def typical_error(found: list[Compared]) -> float:
    """The median of how far predictions are off."""
    return statistics.median(abs(one.error) for one in found)


def badness(found: list[Compared]) -> float:
    """What a fit makes small: the mean of |log(predicted / measured)|, large errors a little more."""
    return statistics.mean(abs(math.log(one.predicted / one.measured)) ** 1.5 for one in found)
