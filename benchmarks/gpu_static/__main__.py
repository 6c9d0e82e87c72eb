"""`python -m benchmarks.gpu_static`: predict, print, and write benchmarks/results/gpu_static.json.

`--check` predicts what the bars are about, prints the worst, and exits with 1 where a bar does not hold; with
`--known-open` those recorded in open_bars.txt may be open. Nothing is written then.
"""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

import torch

os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here; the interpreter has processes of its own

from benchmarks import accelerator, machine, results  # noqa: E402
from benchmarks.gpu_static import baseline, cases, content, gates, measured, model, native, prediction  # noqa: E402
from benchmarks.gpu_static.compiling import compile_all  # noqa: E402

# Widths beside those of the table whose kernels are compiled for other assumptions on alignment.
OTHER_WIDTHS = (200, 520)
TARGETS = ("sm_90", "sm_100")


def resources(known, scratch: Path, options: argparse.Namespace) -> dict[str, dict]:
    """Every kernel of the table, and those of other widths, compiled for each target."""
    wanted = [launch.specialization for one in known.values() for launch in prediction.triton_launches(one)]
    for width in options.widths:
        for call in cases.all_calls(("gpu",), options.dtypes):
            if call.backward and options.calls in call.label:
                wanted += [x.specialization for x in prediction.triton_launches(prediction.record(call, width=width))]
    return {target: dict(compile_all(wanted, target, scratch, options.jobs)) for target in options.targets}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="python -m benchmarks.gpu_static")
    parser.add_argument("--check", action="store_true", help="print the bars, exit 1 where one does not hold")
    parser.add_argument("--known-open", action="store_true", help="bars recorded as open may be open")
    parser.add_argument("--kernels", default="", help="print the kernels of calls whose label contains this")
    parser.add_argument("--sizes", nargs="+", choices=cases.SHAPES, default=list(cases.SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--calls", default="", help="only calls whose label contains this")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="chips to compile for")
    parser.add_argument(
        "--widths",
        nargs="*",
        type=int,
        default=list(OTHER_WIDTHS),
        help="other widths to compile for (none: no number)",
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where compiled results are kept (default: nowhere)")
    parser.add_argument(
        "--output", type=Path, help="file of results (default: benchmarks/results/gpu_static.json, of all calls alone)"
    )
    options = parser.parse_args(arguments)
    everything = [
        vars(options)[name] == parser.get_default(name) for name in ("sizes", "dtypes", "calls", "targets", "widths")
    ]
    if options.output is None and all(everything):
        options.output = results.FOLDER / "gpu_static.json"
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        importlib.import_module("triton")
    except ImportError as failure:
        print(f"skipped: triton is not installed ({failure})")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return run(options, options.scratch or Path(folder))


def run(options: argparse.Namespace, scratch: Path) -> int:
    chip, constants = model.Chip(), model.Constants()
    calls = [call for call in cases.all_calls(options.sizes, options.dtypes) if options.calls in call.label]
    if options.check:
        # What no bar is about is left out.
        calls = [call for call in calls if call.size == "gpu" or call.dtype == "float32"]
    known = prediction.gather(calls, scratch, jobs=options.jobs)
    predicted = {call: prediction.predict(call, one, chip, constants) for call, one in known.items()}
    print_calls(predicted, options.kernels)
    bars = gates.of_times(predicted) + gates.of_launches(known)
    taken = resources(known, scratch, options)
    for target, compiled in taken.items():
        bars += gates.of_resources(compiled, target)
    status = print_bars(bars, options.known_open)
    if options.check:
        return status
    if options.output is None:
        return 0
    measurements, there = measured.measured_calls(), measured.measured_chip()
    file = {
        "machine": machine.describe(accelerator.Cpu(), torch.get_num_threads()) | {"command": command(options)},
        "model": content.of_model(chip, constants) | {"measured_chip": there.name},
        "calls": [
            content.of_call(
                one,
                baseline.predict(call, chip, constants),
                measurements.get(call),
                prediction.predict(call, known[call], there, constants),
            )  # fmt: skip
            for call, one in predicted.items()
        ],
        "native": native.kernels(scratch, options.jobs),
        "resources": content.of_resources(taken),
        "bars": content.of_bars(bars, gates.known_open()),
    }
    results.write_json(options.output, file)
    return 0


def command(options: argparse.Namespace) -> str:
    """What a run covered, as a command."""
    words = ["python -m benchmarks.gpu_static"]
    for name in ("sizes", "dtypes", "calls", "targets", "widths"):
        value = getattr(options, name)
        if value != parse_arguments([]).__dict__[name]:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [value])]
    return " ".join(words)


def print_calls(predicted, wanted: str) -> None:
    """A line for each call, and for each kernel where asked for. All times are predictions."""
    from benchmarks.gpu_static.floors import floor

    print(f"{'call (times are predicted, us)':34} {'dtype':9} {'size':9} {'launches':>9} {'floor':>7} {'us':>7}")
    for call, one in predicted.items():
        launches = f"{one.forward}+{len(one.rows) - one.forward}"
        print(f"{call.label:34} {call.dtype:9} {call.size:9} {launches:>9} {floor(call):7.1f} {one.microseconds:7.1f}")
        if not wanted or wanted not in call.label:
            continue
        for launch, _, compiled, estimate in one.rows:
            bounds = ", ".join(f"{name} {value:.1f}" for name, value in estimate.bounds.items())
            taken = ""
            if compiled is not None:
                taken = (f"{launch.programs} programs, {compiled.blocks_per_sm} per SM, {estimate.waves:.2f} waves, "
                         f"{compiled.registers} registers, {compiled.shared} B shared; ")  # fmt: skip
            print(f"    {launch.name:22} {estimate.microseconds:6.1f} us  {taken}{bounds}")


def print_bars(bars: list[gates.Bar], known_open_allowed: bool) -> int:
    """The bars that do not hold, the worst first; the exit status."""
    known = gates.known_open()
    failed = [bar for bar in bars if not bar.holds]
    failed.sort(key=lambda bar: -(bar.found / bar.allowed if bar.allowed else bar.found))
    print(f"{len(bars) - len(failed)} of {len(bars)} bars hold")
    new = 0
    for bar in failed:
        recorded = bar.name in known
        new += not recorded
        print(f"  {'OPEN (recorded)' if recorded else 'FAILS'}: {bar.name}: {bar.found:.3g} {bar.unit}, "
              f"allowed {bar.allowed:g}")  # fmt: skip
    for bar in bars:
        if bar.holds and bar.name in known:
            print(f"  HOLDS NOW, though recorded as open: {bar.name}: {bar.found:.3g} {bar.unit}, "
                  f"allowed {bar.allowed:g}")  # fmt: skip
    return int(bool(new if known_open_allowed else failed))


if __name__ == "__main__":
    sys.exit(main())
