"""Benchmark of the PAD losses: eager PyTorch, eager written well, torch.compile, pad_kernels, side by side.

Each provider's loss and gradients are checked against the float64 reference before anything is timed; a wrong
one is shown as wrong and gets no ratio. Run `python benchmarks/align_bench.py --help` for what can be chosen.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console

from benchmarks import bars, machine, memory, results, tables, timing, workloads
from benchmarks.cases import DTYPES, SIZES, SWEEP, Case, make_inputs
from benchmarks.floor import work
from benchmarks.plot import plot
from benchmarks.providers import DEFAULT_PROVIDERS, PROVIDERS, make_provider, serves

LEVELS = ("token", "span", "global")
MODES = ("hard", "soft")
DIRECTIONS = ("forward", "forward+backward")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line. By default the base size (on a GPU those named gpu), in float32 and bfloat16."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument(
        "--sizes", nargs="+", choices=tuple(SIZES), help="default: base (--device cuda: gpu, gpu-long, gpu-many)"
    )
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES))
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS,
        help="default: on the CPU eager, eager-scaled, torch.compile, ours; with --device cuda all")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="time for each case, all providers (default: 4)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under a minute: base size, float32, token and span, forward+backward; torch.compile and "
        "memory of the others left out",
    )
    parser.add_argument("--sweep", action="store_true", help="13 sizes around M=750 N=48 D=768, 16 utterances; "
                        "torch.compile and memory left out; written to sweep_<device>.json")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file (default: benchmarks/results/align_<device>.json, with --quick none)",
    )
    parser.add_argument("--plot", type=Path, nargs="?", metavar="PNG", const=results.FOLDER / "align.png",
        help="also draw the base size (default: benchmarks/results/align.png)")
    return parser.parse_args(arguments)


def choose_cases(options: argparse.Namespace) -> list[Case]:
    """The cells to measure, those that share inputs next to each other."""
    options.providers = tuple(options.providers or DEFAULT_PROVIDERS[options.device])
    if options.quick:
        options.directions = ("forward+backward",)
        options.dtypes = options.dtypes or ("float32",)
        options.levels = tuple(level for level in options.levels if level != "global")
        options.providers = tuple(name for name in options.providers if name != "torch.compile")
        options.seconds = min(options.seconds, 4.0)
    if options.sweep:
        options.sizes = options.sizes or tuple(SWEEP)
        options.providers = tuple(name for name in options.providers if name != "torch.compile")
        options.seconds = min(options.seconds, 0.5)
    if options.sizes is None:
        options.sizes = ("base",) if options.device == "cpu" else ("gpu", "gpu-long", "gpu-many")
    cases = []
    for size in options.sizes:
        for dtype in options.dtypes or ("float32", "bfloat16"):
            for level in options.levels:
                for mode in ("",) if level == "global" else options.modes:
                    cases += [Case(size, level, mode, direction, dtype) for direction in options.directions]
    return cases


class AlignBench:
    """One run: checks, timings and memory of all cases."""

    def __init__(self, options: argparse.Namespace, console: Console):
        self.options, self.console = options, console
        self.cases = choose_cases(options)
        self.rates: dict[str, float | None] = {}
        self.results: list[dict] = []

    def run(self, save: Callable[[dict], None] = lambda content: None) -> dict:
        """Measure everything and return the content of the results file; `save` gets what there is after each case."""
        options = self.options
        description = machine.describe(options.device, options.threads)
        with tables.make_progress(self.console) as progress:
            task = progress.add_task(
                "rates of the machine", total=len(self.cases) + 1 + len(options.providers)
            )
            self.rates = machine.measure_rates(options.device, options.threads)
            progress.advance(task)
            errors = {}
            for case in self.cases:
                progress.update(task, description=f"{case.size} {case.dtype} {case.label}")
                self.measure(case, errors)
                save(self.content(description))
                progress.advance(task)
            for provider in options.providers:
                progress.update(task, description=f"memory of {provider}")
                self.measure_memory(provider)
                progress.advance(task)
        return self.content(description)

    def content(self, description: dict) -> dict:
        """The content of the results file so far."""
        options = self.options
        judged = not options.sweep and options.device == "cpu"
        return {
            "machine": description,
            "rates": self.rates,
            "results": self.results,
            "bars": bars.evaluate(self.results, options.threads) if judged else [],
            "sweep": bars.summarize(self.results) if options.sweep else [],
        }

    def measure(self, case: Case, errors: dict) -> None:
        """Check the providers of a case (once for all its directions) and time them against each other."""
        inputs = make_inputs(case, self.options.device)
        group = (case.size, case.level, case.mode, case.dtype)
        torch._dynamo.reset()
        losses = {
            name: make_provider(name, self.options.device)
            for name in self.options.providers
            if serves(name, case.level, case.mode)
        }
        if group not in errors:
            expected = workloads.truth(inputs, case)
            errors[group] = {
                name: workloads.errors(workloads.value_and_gradients(loss, inputs, case), expected)
                for name, loss in losses.items()
            }
        calls = {name: workloads.make_call(loss, inputs, case) for name, loss in losses.items()}
        milliseconds = timing.round_robin(calls, seconds=self.options.seconds, device=self.options.device)
        result = {
            "case": case.as_dict(),
            "title": f"{tables.shape_text(case.as_dict())} {case.dtype}, ragged 40-100 %",
            "label": case.label,
            "floor": work(case, inputs).milliseconds(self.rates),
            "providers": {},
        }
        for name in calls:
            error = errors[group][name]
            result["providers"][name] = {
                "ms": milliseconds[name],
                "error": error,
                "correct": workloads.within_tolerance(error, case.dtype),
                "peak_bytes": None,
                "extra_bytes": None,
            }
        if self.options.device == "cpu" and "ours" in calls and not self.options.sweep and not self.options.quick:
            result["one_thread"] = self.measure_one_thread(calls["ours"])
        for name, row in result["providers"].items():
            row["ratio_to_eager"] = results.ratio(result, name, "eager")
        self.results.append(result)

    def measure_one_thread(self, call) -> dict:
        """Ours on one thread and on all of them, side by side."""

        def on(threads: int) -> None:
            torch.set_num_threads(threads)
            call()

        threads = {"one": 1, "all": self.options.threads}
        calls = {name: partial(on, number) for name, number in threads.items()}
        milliseconds = timing.round_robin(calls, seconds=self.options.seconds / 4)
        torch.set_num_threads(self.options.threads)
        return milliseconds

    def measure_memory(self, provider: str) -> None:
        """Peak bytes beyond the inputs, and beyond inputs and gradients, of all cases of a provider."""
        if self.options.sweep or self.options.quick and provider != "ours":
            return
        found = [result for result in self.results if provider in result["providers"]]
        peaks = memory.peaks(
            "benchmarks.workloads",
            provider,
            [result["case"] for result in found],
            device=self.options.device,
            threads=self.options.threads,
        )
        for result, peak in zip(found, peaks, strict=True):
            row, case = result["providers"][provider], result["case"]
            shape = case["shape"]
            gradients = 0
            if case["direction"] == "forward+backward":
                elements = shape["batch"] * (shape["frames"] + shape["tokens"]) * shape["width"]
                gradients = elements * DTYPES[case["dtype"]].itemsize
            row["peak_bytes"] = peak
            row["extra_bytes"] = None if peak is None else max(0, peak - gradients)


def print_summary(console: Console, content: dict) -> None:
    """Tables, the measured rates, and the bars."""
    tables.print_results(console, content["results"])
    if content["sweep"]:
        tables.print_sweep(console, content["sweep"])
    console.print(
        tables.rates_text(content["rates"]) + "\nx eager: times faster than eager; "
        "x floor: times slower than memory traffic or arithmetic allow; "
        "extra MB: peak memory beyond inputs and gradients; error: the worst, relative, against float64",
        soft_wrap=True,
    )
    if content["bars"]:
        tables.print_bars(console, content["bars"])


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = tables.make_console()
    if options.device == "cuda" and not torch.cuda.is_available():
        console.print("--device cuda: torch sees no CUDA device here")
        return 2
    torch.set_num_threads(options.threads)
    output = options.output
    if output is None and not options.quick:
        output = results.FOLDER / f"{'sweep' if options.sweep else 'align'}_{options.device}.json"
    begin = time.perf_counter()
    save = {} if output is None or options.device == "cpu" else {"save": partial(results.write_json, output)}
    content = AlignBench(options, console).run(**save)
    print_summary(console, content)
    if options.quick:
        console.print(
            "left out with --quick: torch.compile, the forward pass alone, the global level, bfloat16, "
            "other sizes, memory of all but ours",
            soft_wrap=True,
        )
    if output is not None:
        results.write_json(output, content)
        console.print(f"written: {output}", soft_wrap=True)
    if options.plot:
        plot(content, options.plot)
        console.print(f"drawn: {options.plot}", soft_wrap=True)
    console.print(f"{time.perf_counter() - begin:.0f} s")
    wrong = [
        row
        for result in content["results"]
        for name, row in result["providers"].items()
        if name.startswith("ours") and not row["correct"]
    ]
    if wrong:
        console.print(f"{len(wrong)} results of pad_kernels are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
