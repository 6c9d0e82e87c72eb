"""Benchmark of the PAD losses: eager PyTorch, eager written well, torch.compile, pad_kernels, side by side.

Each provider's loss and gradients are checked against the float64 reference before anything is timed; a wrong
one is shown as wrong and gets no ratio, one that fails is shown with its error. Run `python benchmarks/align_bench.py
--help` for what can be chosen.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console

from benchmarks import accelerator, bars, machine, measure, memory, results, tables, timing, workloads
from benchmarks.cases import DTYPES, SIZES, SMALL_BATCHES, SWEEP, Case, Inputs, make_inputs
from benchmarks.floor import passes, traffic_of
from benchmarks.plot import plot
from benchmarks.providers import DEFAULT_PROVIDERS, PROVIDERS, Provider, make_provider, serves
from benchmarks.results import Run

LEVELS = ("token", "span", "global")
MODES = ("hard", "soft")
DIRECTIONS = ("forward", "forward+backward")
MEMORY = "memory traffic"
# On a GPU the float64 reference is computed for so many utterances at a time.
UTTERANCES_ON_GPU = 8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line. By default the base size (on a GPU those named gpu), in float32 and bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=accelerator.DEVICES, default="cpu", help=accelerator.DEVICE_HELP)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument(
        "--sizes", nargs="+", choices=tuple(SIZES), help="default: base (--device cuda: gpu, gpu-long, gpu-many)"
    )
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES))
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        help="default: on the CPU eager, eager-scaled, torch.compile, ours; with --device cuda all; other packages are "
        "rows that say so where they are not installed",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each case, all providers (default: 4)")
    parser.add_argument("--no-kernels", action="store_true", help="on a GPU, leave out the tables of kernels")
    results.add_options(parser)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under a minute: base size, float32, token and span, forward+backward; torch.compile and "
        "memory of the others left out",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="13 sizes around M=750 N=48 D=768, 16 utterances, and 2 small ones; "
        "torch.compile and memory left out; written to sweep_<device>.json",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file (default: benchmarks/results/align_<device>.json, with --quick none)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="?",
        metavar="PNG",
        const=results.FOLDER / "align.png",
        help="also draw the base size (default: benchmarks/results/align.png)",
    )
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
        options.sizes = options.sizes or tuple(SWEEP | SMALL_BATCHES)
        options.providers = tuple(name for name in options.providers if name != "torch.compile")
        options.seconds = min(options.seconds, 0.5)
    if options.sizes is None:
        options.sizes = ("base",) if options.device == "cpu" else ("gpu", "gpu-long", "gpu-many")
    if options.device == "dry-run":
        options.sizes, options.seconds = ("tiny",), 0.0
    cases = []
    for size in options.sizes:
        for dtype in options.dtypes or ("float32", "bfloat16"):
            for level in options.levels:
                for mode in ("",) if level == "global" else options.modes:
                    cases += [Case(size, level, mode, direction, dtype) for direction in options.directions]
    return cases


class AlignBench:
    """One run: checks, timings and memory of all cases."""

    def __init__(self, options: argparse.Namespace, console: Console, output: Path | None = None):
        self.options, self.console = options, console
        self.cases = choose_cases(options)
        self.device = accelerator.get(options.device)
        description = machine.describe(self.device, options.threads)
        self.saved = Run(output, description, options.seconds_total, options.resume)
        self.results = self.saved.results
        self.rates: dict[str, float | None] = {}
        self._inputs: tuple[tuple[str, str], Inputs] | None = None
        self._errors: dict[tuple, dict[str, dict | str]] = {}
        self._truth: tuple[tuple, tuple[torch.Tensor, ...]] | None = None

    def run(self) -> dict:
        """Measure everything and return the content of the results file, which is saved after each case."""
        options = self.options
        with tables.make_progress(self.console) as progress:
            task = progress.add_task("rates of the machine", total=len(self.cases) + 1 + len(options.providers))
            self.rates = machine.measure_rates(self.device, options.threads)
            self.save()
            progress.advance(task)
            for case in self.cases:
                label = f"{case.size} {case.dtype} {case.label}"
                progress.update(task, description=label)
                if not self.saved.has(case.as_dict()) and self.saved.may_start(label):
                    self.measure(case)
                    self.save()
                progress.advance(task)
            for provider in () if self.device.is_gpu else options.providers:
                progress.update(task, description=f"memory of {provider}")
                self.measure_memory(provider)
                progress.advance(task)
        self.save()
        return self.saved.content

    def save(self) -> None:
        """Bring the content of the results file up to date, and write it."""
        self.saved.content |= {
            "rates": self.rates,
            "bars": self.judge(),
            "sweep": bars.summarize(self.results) if self.options.sweep else [],
        }
        self.saved.save()

    def judge(self) -> list[dict]:
        """What a run on a CPU was to reach, and whether it did."""
        if self.device.is_gpu:
            return []
        if self.options.sweep:
            return bars.small_batches(self.results)
        memory_kept = any(name.startswith("MALLOC_") for name in self.saved.content["machine"]["allocator"])
        return bars.evaluate(self.results, self.options.threads, memory_kept)

    def inputs(self, case: Case) -> Inputs:
        """Inputs of a case; those of all levels and directions of a size and dtype are the same, and kept."""
        key = (case.size, case.dtype)
        if self._inputs is None or self._inputs[0] != key:
            self._inputs = None
            self._inputs = key, make_inputs(replace(case, level="span"), self.device.tensors)
        kept = self._inputs[1]
        return kept if case.level == "span" else kept._replace(start=None, end=None)

    def measure(self, case: Case) -> None:
        """Check the providers of a case and time them against each other."""
        inputs = self.inputs(case)
        torch._dynamo.reset()
        rows, calls = {}, {}
        names = [name for name in self.options.providers if serves(name, case.level, case.mode)]
        for name in names:
            rows[name], call = self.check(name, case, inputs)
            if call is not None:
                calls[name] = call
        plan = measure.Plan(
            self.options.seconds,
            self.device.min_rounds,
            profiled=lambda name: not self.options.no_kernels and name not in ("eager-scaled", "sdpa", "torch.compile"),
            own_graphs=frozenset({"torch.compile"}),
        )
        works, memory = passes(case, inputs), {}
        if self.device.name == "cpu":
            with suppress(OSError):
                memory = {
                    f"{MEMORY} {i}": traffic_of(work, inputs, self.options.threads) for i, work in enumerate(works)
                }
        measured = measure.measure(calls | memory, self.device, plan)
        for name, row in measured.items():
            if name in memory:
                continue
            failed = row.get("failure") is not None
            rows[name] = row if failed else row | rows[name] | {"extra_bytes": self.extra_bytes(row, case)}
            measure.add_bandwidth(row.get("kernels", []), works.kernel_bytes, self.rates["read_gbs"])
        result = {
            "case": case.as_dict(),
            "title": f"{tables.shape_text(case.as_dict())} {case.dtype}, ragged 40-100 %",
            "label": case.label,
            "floor": works.milliseconds(self.rates, [traffic.milliseconds() for traffic in memory.values()]),
            "providers": {name: rows[name] for name in names},
        }
        if self.device.name == "cpu" and "ours" in calls and not self.options.sweep and not self.options.quick:
            result["one_thread"] = self.measure_one_thread(calls["ours"])
        for name, row in result["providers"].items():
            row["ratio_to_eager"] = results.ratio(result, name, "eager")
        self.results.append(result)

    def check(self, name: str, case: Case, inputs: Inputs) -> tuple[dict, Callable | None]:
        """What is known of a provider, its relative errors (once for all directions) or why it failed, and its call."""
        if name in self.saved.lost():
            return measure.failed_row("left out: the GPU was lost with it in an earlier case"), None
        try:
            provider = make_provider(name, self.device.tensors)
        except ImportError as missing:
            return measure.failed_row(f"not installed: {missing}", unavailable=True), None
        errors = self._errors.setdefault((case.size, case.level, case.mode, case.dtype), {})
        if name not in errors:
            found, failure = timing.attempt(name, lambda: self.measure_errors(provider, case, inputs), self.device)
            errors[name] = found if failure is None else failure
        if isinstance(errors[name], str):
            # A backend that was asked for by name and cannot serve says so in a ValueError.
            return measure.failed_row(errors[name], errors[name].startswith("ValueError: backend")), None
        row = {"error": errors[name], "correct": workloads.within_tolerance(errors[name], case.dtype)}
        return row, workloads.make_call(provider, inputs, case)

    def measure_errors(self, provider: Provider, case: Case, inputs: Inputs) -> dict[str, float]:
        """Relative errors against the provider's definition in float64."""
        prepared = provider.prepare(inputs)
        key = (case.size, case.level, case.mode, case.dtype, provider.definition)
        if self._truth is None or self._truth[0] != key:
            self._truth = None
            utterances = UTTERANCES_ON_GPU if self.device.is_gpu else None
            self._truth = key, workloads.truth(prepared, case, provider.definition, utterances)
        expected = self._truth[1]
        return workloads.errors(
            workloads.value_and_gradients(provider.loss, prepared, case), expected
        ) | workloads.error_alone(provider.loss, prepared, case, expected[0])

    @staticmethod
    def extra_bytes(row: dict, case: Case) -> int | None:
        """Peak bytes beyond inputs and gradients."""
        gradients = (case.shape.frames + case.shape.tokens) * case.shape.batch * case.shape.width * case.backward
        peak = row["peak_bytes"]
        return None if peak is None else max(0, peak - gradients * DTYPES[case.dtype].itemsize)

    def measure_one_thread(self, call) -> dict:
        """Ours on one thread and on all of them, side by side."""

        def on(threads: int) -> None:
            torch.set_num_threads(threads)
            call()

        threads = {"one": 1, "all": self.options.threads}
        calls = {name: partial(on, number) for name, number in threads.items()}
        timed = timing.round_robin(calls, self.device, seconds=self.options.seconds / 4)
        torch.set_num_threads(self.options.threads)
        return timed.milliseconds

    def measure_memory(self, provider: str) -> None:
        """Peak bytes beyond the inputs, and beyond inputs and gradients, of all cases of a provider."""
        if self.options.sweep or self.options.quick and provider != "ours":
            return
        found = [result for result in self.results
                 if result["providers"].get(provider, {"failure": ""}).get("failure") is None]  # fmt: skip
        cases = [result["case"] for result in found]
        peaks = memory.peaks("benchmarks.workloads", provider, cases, threads=self.options.threads) if cases else []
        for result, peak in zip(found, peaks, strict=True):
            row = result["providers"][provider]
            row["peak_bytes"] = peak
            case = Case(**{field.name: result["case"][field.name] for field in fields(Case)})
            row["extra_bytes"] = self.extra_bytes(row, case)


def print_summary(console: Console, content: dict) -> None:
    """Tables, the measured rates, and the bars."""
    tables.print_results(console, content["results"])
    tables.print_kernels(console, content["results"])
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
    tables.print_left_out(console, content)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = tables.make_console()
    missing = accelerator.get(options.device).missing()
    if missing:
        console.print(f"--device {options.device}: {missing}")
        return 2
    torch.set_num_threads(options.threads)
    output = options.output
    if output is None and not options.quick and options.device != "dry-run":
        output = results.FOLDER / f"{'sweep' if options.sweep else 'align'}_{options.device}.json"
    begin = time.perf_counter()
    bench = AlignBench(options, console, output)
    try:
        content = bench.run()
    except accelerator.DeviceLostError as lost:
        bench.saved.goes_on(lost)
    print_summary(console, content)
    if options.quick:
        console.print(
            "left out with --quick: torch.compile, the forward pass alone, the global level, bfloat16, "
            "other sizes, memory of all but ours",
            soft_wrap=True,
        )
    if output is not None:
        console.print(f"written: {output}", soft_wrap=True)
    if options.plot:
        plot(content, options.plot)
        console.print(f"drawn: {options.plot}", soft_wrap=True)
    console.print(f"{time.perf_counter() - begin:.0f} s")
    bad, below = failures(content["results"]), results.below_floor(content)
    for line in bad + below:
        console.print(line, soft_wrap=True, markup=False)
    if not options.quick:  # whose machine need not be quiet: other work slows the floor's own measurement
        bad += below
    return 1 if bad or not content["results"] else 0


def failures(found: list[dict]) -> list[str]:
    """What of pad_kernels is wrong or failed; a backend asked for by name may be unavailable, pad_kernels may not."""
    bad = []
    for result in found:
        for name, row in result["providers"].items():
            excused = row.get("unavailable", False) and name != "ours"
            if name.startswith("ours") and not row["correct"] and not excused:
                bad.append(f"{result['title']} {result['label']}: {name} {row.get('failure') or 'is wrong'}")
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
