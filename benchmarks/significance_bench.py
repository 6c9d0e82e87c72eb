"""Benchmark of the significance prior: from an attention map (eager) against pad_kernels, which holds none.

The forward of scaled_dot_product_attention on the same query and key stands beside them as a yardstick: two
matrix products and one softmax, where the prior takes one of each. Results are checked against float64.
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
from benchmarks import machine, memory, results, tables, timing
from benchmarks.cases import DTYPES, ragged_mask
from benchmarks.floor import Work
from benchmarks.workloads import TOLERANCES

SHAPES = {"base": (4, 12, 1500, 64), "long": (1, 12, 3000, 64), "gpu": (32, 12, 750, 64)}
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
    return F.scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, attn_mask=inputs.mask[:, None, None]
    )


def ours_given(inputs: Inputs) -> Tensor:
    """The same with the row log-sum-exp, which the attention has computed anyway."""
    return pad_kernels.significance(inputs.query, inputs.key, inputs.mask, lse=inputs.lse)


PROVIDERS = {"eager": eager, YARDSTICK: sdpa, "ours": ours, "ours, lse given": ours_given}


def workload(provider: str, case: dict, device: str) -> Callable[[], object]:
    """The call to measure, from the plain data a child process is given."""
    inputs = Inputs(tuple(case["shape"]), case["dtype"], device)
    return lambda: PROVIDERS[provider](inputs)


def measure(size: str, dtype: str, options: argparse.Namespace, rates: dict) -> dict:
    """Check and time one case."""
    shape = SHAPES[size]
    inputs = Inputs(shape, dtype, options.device)
    exact = Inputs(shape, dtype, options.device)
    exact.query, exact.key = exact.query.double(), exact.key.double()
    expected = eager(exact)
    calls = {name: (lambda function=function: function(inputs)) for name, function in PROVIDERS.items()}
    errors = {
        name: {"significance": float((calls[name]().double() - expected).norm() / expected.norm())}
        for name in calls
        if name != YARDSTICK
    }
    milliseconds = timing.round_robin(calls, seconds=options.seconds, device=options.device)
    pairs = float((inputs.mask.sum(1).double() ** 2).sum()) * shape[1]
    work = Work(inputs.query.element_size() == 2, 2 * pairs * shape[3], 2 * inputs.query.nbytes, 0)
    result = {
        "case": {"size": size, "dtype": dtype, "shape": shape},
        "title": "B={} H={} T={} d={} ".format(*shape) + f"{dtype}, ragged 40-100 %",
        "label": "significance",
        "floor": work.milliseconds(rates),
        "providers": {
            name: {
                "ms": milliseconds[name],
                "error": errors.get(name, {}),
                "correct": all(error <= TOLERANCES[dtype] for error in errors.get(name, {}).values()),
                "extra_bytes": None,
            }
            for name in calls
        },
    }
    for name, row in result["providers"].items():
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--sizes", nargs="+", choices=tuple(SHAPES),
                        help="default: base and long (--device cuda: gpu)")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each case (default: 6)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/significance_<device>.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = tables.make_console()
    if options.device == "cuda" and not torch.cuda.is_available():
        console.print("--device cuda: torch sees no CUDA device here")
        return 2
    options.sizes = options.sizes or (("gpu",) if options.device == "cuda" else ("base", "long"))
    torch.set_num_threads(options.threads)
    description = machine.describe(options.device, options.threads)
    found = []
    with tables.make_progress(console) as progress:
        total = 1 + len(options.sizes) * len(options.dtypes) + len(PROVIDERS)
        task = progress.add_task("rates of the machine", total=total)
        rates = machine.measure_rates(options.device, options.threads)
        for size in options.sizes:
            for dtype in options.dtypes:
                progress.update(task, advance=1, description=f"{size} {dtype}")
                found.append(measure(size, dtype, options, rates))
        for name in PROVIDERS:
            progress.update(task, advance=1, description=f"memory of {name}")
            cases = [result["case"] for result in found]
            peaks = memory.peaks("benchmarks.significance_bench", name, cases, device=options.device,
                                 threads=options.threads)  # fmt: skip
            for result, peak in zip(found, peaks, strict=True):
                result["providers"][name]["extra_bytes"] = peak
        progress.update(task, advance=1, description="done")
    content = {"machine": description, "rates": rates, "results": found}
    content["bars"] = bars(found, options.threads) if options.device == "cpu" else []
    tables.print_results(console, found)
    console.print(tables.rates_text(rates), soft_wrap=True)
    if content["bars"]:
        tables.print_bars(console, content["bars"])
    output = options.output or results.FOLDER / f"significance_{options.device}.json"
    results.write_json(output, content)
    console.print(f"written: {output}", soft_wrap=True)
    return 0 if all(result["providers"]["ours"]["correct"] for result in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
