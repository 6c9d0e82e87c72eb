"""Fits the constants of the model to the committed measurements: `python -m benchmarks.gpu_static.fit`.

Prints the constants, to be written into model.py by hand, and how far off the model is for each size when it is fitted
to the other sizes. Each constant is held near a plausible value, so that it does not make up for what another lacks.
How far off each kernel is goes to benchmarks/results/gpu_static_fit.json. The kernels must be those that were measured.
"""

import argparse
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import accelerator, machine, results
from benchmarks.gpu_static import cases, content, measured, model, prediction
from benchmarks.gpu_static.cases import Call
from benchmarks.gpu_static.prediction import Known

# A value, and by how many e-folds a constant may be off it before that counts as much as an error of a tenth or so.
PLAUSIBLE = {
    "memory_latency": (800, 0.5), "level2_latency": (270, 0.5), "reduction": (150, 1), "product": (80, 1),
    "wait": (20, 1), "step": (5, 0.5), "barrier": (60, 1), "alu": (1.2, 0.5), "index": (0.7, 1), "address": (0.5, 1),
    "special": (2, 0.7), "operand": (0.5, 1), "split": (6, 1), "store": (3, 1), "issue_share": (0.7, 0.5),
    "matrix_share": (0.7, 0.5), "memory_share": (0.9, 0.3), "kept_share": (0.7, 0.5), "start": (1.5, 0.5),
    "softness": (2.5, 0.5),
}  # fmt: skip
WEIGHT = 0.002


def loss(known: dict[Call, Known], constants: model.Constants) -> float:
    """The mean error over the kernels, and how implausible the constants are."""
    values = asdict(constants)
    far = sum((math.log(values[name] / value) / width) ** 2 for name, (value, width) in PLAUSIBLE.items())
    return measured.badness(measured.compare(known, constants, whole=False)) + WEIGHT * far


def fit(known: dict[Call, Known], start: model.Constants, seconds: float) -> model.Constants:
    """The constants, one after another made larger or smaller as long as that helps, for so many seconds at most."""
    best, least = start, loss(known, start)
    steps = dict.fromkeys(PLAUSIBLE, 1.4)
    end = time.monotonic() + seconds
    while max(steps.values()) > 1.01 and time.monotonic() < end:
        for name in steps:
            better = False
            for factor in (steps[name], 1 / steps[name]):
                value = getattr(best, name) * factor
                tried = best.replaced(**{name: min(value, 1.0) if name.endswith("share") else value})
                found = loss(known, tried)
                if found < least - 1e-5:
                    best, least, better = tried, found, True
                    break
            steps[name] = steps[name] * 1.1 if better else 1 + (steps[name] - 1) * 0.6
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="python -m benchmarks.gpu_static.fit")
    parser.add_argument("--scratch", type=Path, required=True, help="where compiled and counted results are kept")
    parser.add_argument(
        "--seconds", type=float, default=600, help="of each fit, at most (default: 600); 0: compare the model as it is"
    )
    parser.add_argument("--output", type=Path, default=results.FOLDER / "gpu_static_fit.json")
    options = parser.parse_args()
    known = prediction.gather(
        [call for call in cases.all_calls() if call in measured.measured_calls()], options.scratch
    )
    found = fit(known, model.Constants(), options.seconds)
    for name in PLAUSIBLE:
        print(f"    {name}: float = {getattr(found, name):.3g}")
    compared = measured.compare(known, found)
    print(content.of_errors(compared)["kernels"])
    described = machine.describe(accelerator.Cpu(), torch.get_num_threads())
    file = {"machine": described | {"command": "python -m benchmarks.gpu_static.fit"}}
    results.write_json(options.output, file | content.of_fit(measured.measured_chip(), found, compared))
    for size in cases.SHAPES:
        others = {call: one for call, one in known.items() if call.size != size}
        left_out = {call: one for call, one in known.items() if call.size == size}
        compared = measured.compare(left_out, fit(others, found, options.seconds))
        print(f"{size}, fitted to the others: {content.of_errors(compared)['kernels']}")


if __name__ == "__main__":
    main()
