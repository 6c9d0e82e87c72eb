"""Benchmark of the significance prior: from an attention map (eager) against pad_kernels, which holds none.

The forward of scaled_dot_product_attention on the same query and key stands beside them as a yardstick: two
matrix products and one softmax, where the prior takes one of each. Results are checked against float64; what fails is
shown with its error.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import pad_kernels
from benchmarks import accelerator, machine, measure, memory, results, tables, timing
from benchmarks.cases import DTYPES, ragged_mask
from benchmarks.floor import Work
from benchmarks.results import Run
from benchmarks.workloads import TOLERANCES

SHAPES = {"base": (4, 12, 1500, 64), "long": (1, 12, 3000, 64), "gpu": (32, 12, 750, 64), "tiny": (2, 2, 40, 16)}
YARDSTICK = "sdpa forward"


class Inputs:
    """Seeded query, key, value [B, H, T, d] and a ragged mask [B, T] of one case."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: str, device: str):
        generator = torch.Generator().manual_seed(0)
        tensors = torch.randn(3, *shape, generator=generator).to(DTYPES[dtype]).to(device)
        self.query, self.key, self.value = tensors
        self.mask = ragged_mask(shape[0], shape[2]).to(device)
        self.lse = torch.cat([
            (part.float() @ self.key.float().mT * shape[3] ** -0.5)
            .masked_fill(~self.mask[:, None, None], -torch.inf).logsumexp(-1)
            for part in self.query.split(64, dim=2)
        ], dim=2)  # fmt: skip


def attention_map(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention [B, H, T, T]; the rows of masked queries are 0."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1) * mask[:, None, :, None]


def eager(inputs: Inputs) -> Tensor:
    """The definition: column sums of the attention map."""
    received = attention_map(inputs.query, inputs.key, inputs.mask).sum((1, 2))
    return received / received.sum(1, keepdim=True)


def ours(inputs: Inputs) -> Tensor:
    """The public function of this package."""
    return pad_kernels.significance(inputs.query, inputs.key, inputs.mask)


def sdpa(inputs: Inputs) -> Tensor:
    """The attention's own forward: another result, for comparison of speed only."""
    return F.scaled_dot_product_attention(inputs.query, inputs.key, inputs.value, attn_mask=inputs.mask[:, None, None])


def ours_given(inputs: Inputs) -> Tensor:
    """The same with the row log-sum-exp, which the attention has computed anyway."""
    return pad_kernels.significance(inputs.query, inputs.key, inputs.mask, lse=inputs.lse)


PROVIDERS = {"eager": eager, YARDSTICK: sdpa, "ours": ours, "ours, lse given": ours_given}


def workload(provider: str, case: dict) -> Callable[[], object]:
    """The call to measure, from the plain data a child process is given."""
    inputs = Inputs(tuple(case["shape"]), case["dtype"], "cpu")
    return lambda: PROVIDERS[provider](inputs)


def truth(inputs: Inputs) -> Tensor:
    """The prior in float64, an utterance at a time: the maps of a batch would be gigabytes."""
    parts = []
    for query, key, mask in zip(inputs.query, inputs.key, inputs.mask, strict=True):
        received = attention_map(query[None].double(), key[None].double(), mask[None]).sum((1, 2))
        parts.append(received / received.sum(1, keepdim=True))
    return torch.cat(parts)


def measure_case(case: dict, device: accelerator.Device, seconds: float, rates: dict, lost: set[str]) -> dict:
    """Check and time one case, without the providers that have lost the GPU before."""
    shape, dtype = case["shape"], case["dtype"]
    inputs = Inputs(shape, dtype, device.tensors)
    expected = truth(inputs)
    calls = {name: (lambda function=function: function(inputs)) for name, function in PROVIDERS.items()}
    rows = {}
    for name in PROVIDERS:
        if name in lost:
            rows[name] = measure.failed_row("left out: the GPU was lost with it in an earlier case")
            continue
        found, failure = timing.attempt(name, calls[name], device)
        if failure is not None:
            rows[name] = measure.failed_row(failure)
            continue
        error = {}
        if name != YARDSTICK:
            error = {"significance": float((found.double() - expected).norm() / expected.norm())}
        correct = all(value <= TOLERANCES[dtype] for value in error.values())
        rows[name] = {"error": error, "correct": correct, "extra_bytes": None}
    pairs = float((inputs.mask.sum(1).double() ** 2).sum()) * shape[1]
    work = Work(dtype, 2 * pairs * shape[3], 2 * inputs.query.nbytes, 0)
    running = {name: call for name, call in calls.items() if "failure" not in rows[name]}
    for name, row in measure.measure(running, device, measure.Plan(seconds, device.min_rounds)).items():
        rows[name] = row if row.get("failure") else row | rows[name]
        if device.is_gpu:
            rows[name]["extra_bytes"] = row["peak_bytes"]
        measure.add_bandwidth(row.get("kernels", []), lambda name: None, rates["read_gbs"])
    padding = "no padding" if bool(inputs.mask.all()) else "ragged 40-100 %"
    result = {
        "case": case,
        "title": "B={} H={} T={} d={} ".format(*shape) + f"{dtype}, {padding}",
        "label": "significance",
        "floor": work.milliseconds(rates),
        "providers": rows,
    }
    for name, row in rows.items():
        row["ratio_to_eager"] = results.ratio(result, name, "eager")
    return result


def bars(found: list[dict], threads: int) -> list[dict]:
    """Faster than the attention map; memory in the order of B H T."""
    base = results.find(found, size="base", dtype="float32")
    if base is None:
        return []
    batch, heads, length, _ = base["case"]["shape"]
    limit = threads + 16e-6 * batch * heads * length
    extra = base["providers"]["ours"]["extra_bytes"]
    extra = None if extra is None else extra / 1e6
    speed = results.ratio(base, "ours", "eager")
    times = {name: row["ms"]["p50"] if row["correct"] else None for name, row in base["providers"].items()}
    rows = []
    for name, title, wanted in (
        ("ours, lse given", "significance with lse given", 1.0),
        ("ours", "significance", 1.5),
    ):
        share = None if times[name] is None else times[name] / times[YARDSTICK]
        met = None if share is None else share <= wanted
        rows.append({"bar": f"{title}: time relative to an SDPA forward, at most", "unit": "x",
                     "wanted": wanted, "measured": share, "met": met})  # fmt: skip
    return rows + [
        {"bar": "significance: speed-up over computing the attention map", "unit": "x", "wanted": 1.0,
         "measured": speed, "met": None if speed is None else speed > 1},
        {"bar": "significance: memory beyond inputs, below 1 MB per thread + 16 bytes x B H T", "unit": "MB",
         "wanted": limit, "measured": extra, "met": None if extra is None else extra < limit},
    ]  # fmt: skip


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=accelerator.DEVICES, default="cpu", help=accelerator.DEVICE_HELP)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--sizes", nargs="+", choices=tuple(SHAPES), help="default: base and long (--device cuda: gpu)")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each case (default: 6)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/significance_<device>.json")
    results.add_options(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, console, device: accelerator.Device, saved: Run) -> None:
    """Measure all cases; what there is is saved after each."""
    content = saved.content
    cases = [{"size": size, "dtype": dtype, "shape": SHAPES[size]}
             for size in options.sizes for dtype in options.dtypes]  # fmt: skip
    with tables.make_progress(console) as progress:
        task = progress.add_task("rates of the machine", total=1 + len(cases) + len(PROVIDERS))
        rates = content["rates"] = machine.measure_rates(device, options.threads)
        content["bars"] = []
        for case in cases:
            label = f"{case['size']} {case['dtype']}"
            progress.update(task, advance=1, description=label)
            if not saved.has(case) and saved.may_start(label):
                saved.results.append(measure_case(case, device, options.seconds, rates, saved.lost()))
                saved.save()
        for name in () if device.is_gpu else PROVIDERS:
            progress.update(task, advance=1, description=f"memory of {name}")
            found = [result for result in saved.results if not result["providers"][name].get("failure")]
            peaks = memory.peaks("benchmarks.significance_bench", name, [result["case"] for result in found],
                                 threads=options.threads) if found else []  # fmt: skip
            for result, peak in zip(found, peaks, strict=True):
                result["providers"][name]["extra_bytes"] = peak
        progress.update(task, advance=1, description="done")
    content["bars"] = [] if device.is_gpu else bars(saved.results, options.threads)
    saved.save()


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = tables.make_console()
    device = accelerator.get(options.device)
    missing = device.missing()
    if missing:
        console.print(f"--device {options.device}: {missing}")
        return 2
    if options.device == "dry-run":
        options.sizes, options.seconds = ("tiny",), 0.0
    options.sizes = options.sizes or (("gpu",) if options.device == "cuda" else ("base", "long"))
    torch.set_num_threads(options.threads)
    output = options.output or results.FOLDER / f"significance_{options.device}.json"
    saved = Run(output, machine.describe(device, options.threads), options.seconds_total, options.resume)
    try:
        run(options, console, device, saved)
    except accelerator.DeviceLostError as lost:
        saved.goes_on(lost)
    content = saved.content
    tables.print_results(console, content["results"])
    tables.print_kernels(console, content["results"])
    console.print(tables.rates_text(content["rates"]), soft_wrap=True)
    if content["bars"]:
        tables.print_bars(console, content["bars"])
    tables.print_left_out(console, content)
    console.print(f"written: {output}", soft_wrap=True)
    right = [row["correct"] for result in content["results"]
             for name, row in result["providers"].items() if name.startswith("ours")]  # fmt: skip
    below = results.below_floor(content)
    for line in below:
        console.print(line, soft_wrap=True, markup=False)
    return 0 if right and all(right) and not below else 1


if __name__ == "__main__":
    raise SystemExit(main())
