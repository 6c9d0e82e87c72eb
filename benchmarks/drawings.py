"""The tables of README.md and docs/: each function makes one, as Markdown, from the content of its results files."""

import statistics
from collections.abc import Iterable

from benchmarks import bars, goals, results, step_bench
from benchmarks.cases import SMALL_BATCHES
from benchmarks.tables import megabytes, number, shape_text

BOTH = "forward+backward"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _name(provider: str) -> str:
    return provider.replace("ours", "pad_kernels")


def processor_name(machine: dict) -> str:
    """The GPU, or the processor and its threads."""
    if machine.get("gpu"):
        return machine["gpu"]
    threads = machine["threads"]
    return f"{machine['cpu'].replace('(R)', '')}, {threads} thread{'' if threads == 1 else 's'}"


def machine_text(content: dict) -> str:
    """What a results file was measured with: processor, torch, settings of the allocator."""
    machine = content["machine"]
    allocator = "".join(f", {name}={value}" for name, value in machine.get("allocator", {}).items())
    return f"{processor_name(machine)}, torch {machine['versions']['torch']}{allocator}"


def _milliseconds(row: dict | None, column: str = "ms") -> str:
    if row is None or row.get("unavailable"):
        return "-"
    times = row.get(column)
    if times is None:
        return "failed"
    if not row["correct"]:
        return "wrong"
    late = ", late" if times.get("late") else ""
    return f"{times['p50']:.3g} ({times['p20']:.3g}-{times['p80']:.3g}){late}"


def _late_note(content: dict) -> str:
    """What `late` means, where a cell of a table says so."""
    rows = [row for result in content["results"] for row in result["providers"].values()]
    return "late: waits for the host included; " if results.any_late(rows) else ""


def _seconds(row: dict) -> str:
    return f"{row['ms']['p50'] / 1e3:.3g}" if row["ms"] else "failed"


def _speed_up(result: dict, base: str, column: str = "ms", digits: int = 1) -> str:
    value = results.ratio(result, "ours", base, column)
    return "-" if value is None else f"{value:.{digits}f}x"


def speed_up_range(values: Iterable[float | None], digits: int = 1) -> str:
    """The lowest and the highest of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}x" for value in (min(known), max(known))))


def mean_and_range(values: list[float]) -> str:
    """The mean and, in brackets, the lowest and the highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _base_size(content: dict) -> list[dict]:
    """The results of the first size in the file, which the others vary."""
    size = content["results"][0]["case"]["size"]
    return [result for result in content["results"] if result["case"]["size"] == size]


def whole_passes(content: dict) -> list[dict]:
    """Forward and backward at the first size."""
    return results.select(_base_size(content), direction=BOTH)


def align(content: dict) -> str:
    """The losses at the base size: float32, and a whole pass in bfloat16."""
    base = _base_size(content)
    found = [r for r in base if r["case"]["dtype"] == "float32"]
    found += [r | {"label": f"{r['label']}, bfloat16"} for r in base
              if r["case"]["dtype"] == "bfloat16" and r["case"]["direction"] == BOTH]  # fmt: skip
    providers = [name for name in found[0]["providers"] if name != "ours"]
    header = ["loss", "pad_kernels, ms", *(f"{_name(name)}, ms" for name in providers)]
    header += [*(f"vs {_name(name)}" for name in providers)]
    rows = [
        [r["label"], _milliseconds(r["providers"].get("ours"))]
        + [_milliseconds(r["providers"].get(name)) for name in providers]
        + [_speed_up(r, name) for name in providers]
        for r in found
    ]
    return (
        f"{table(header, rows)}\n\n{found[0]['title']}; medians and, in brackets, the 20th to 80th percentile; "
        f"vs: speed-up over that baseline; {machine_text(content)}."
    )


def spread(content: dict) -> str:
    """How far apart the 20th and the 80th percentile are at most, forward and backward: ours, and of a baseline."""
    parts = []
    for dtype in dict.fromkeys(result["case"]["dtype"] for result in content["results"]):
        ours, others = [], []
        for result in results.select(whole_passes(content), dtype=dtype):
            for name, row in result["providers"].items():
                if row["ms"]:
                    share = 100 * (row["ms"]["p80"] - row["ms"]["p20"]) / row["ms"]["p50"]
                    (ours if name == "ours" else others).append(share)
        parts.append(f"{dtype} {max(ours):.0f} % of the median (baselines {max(others):.0f} %)")
    return (
        f"Forward and backward, the 20th and the 80th percentile of ours are at most so far apart: {', '.join(parts)}."
    )


def kept_leads(content: dict) -> str:
    """At which losses the lead over torch.compile is reached where the allocator keeps freed memory."""
    leads = [bar for bar in content["bars"] if bar["bar"].endswith(bars.KEPT)]
    reached = [bar["bar"].partition(",")[0] for bar in leads if bar["met"]]
    return (
        f"Of the {len(leads)} leads over torch.compile that are wanted with kept memory, {len(reached)} are reached: "
        f"{', '.join(reached) or 'none'}."
    )


def align_gpu(content: dict) -> str:
    """The losses on a GPU, a table for each size and dtype: GPU time, and the wall time of the call."""
    titles = dict.fromkeys(result["title"] for result in content["results"])
    parts = [_gpu_table([r for r in content["results"] if r["title"] == title]) for title in titles]
    return "\n\n".join(parts) + (
        "\n\nMedians and, in brackets, the 20th to 80th percentile; ms: GPU time; wall ms: time of the call; vs: "
        f"speed-up over that baseline, wall: in wall time; {_late_note(content)}{machine_text(content)}."
    )


def _gpu_table(found: list[dict]) -> str:
    providers = dict.fromkeys(name for result in found for name in result["providers"])
    others = [name for name in providers if name != "ours"]
    bases = [name for name in others if name in ("eager", "torch.compile")]
    header = ["loss", "pad_kernels, ms", *(f"{_name(name)}, ms" for name in others)]
    header += [f"{_name(name)}, wall ms" for name in ("ours", *bases)]
    header += [f"vs {name}{wall}" for name in bases for wall in ("", ", wall")]
    rows = [
        [result["label"]]
        + [_milliseconds(result["providers"].get(name)) for name in ("ours", *others)]
        + [_milliseconds(result["providers"].get(name), "wall_ms") for name in ("ours", *bases)]
        + [_speed_up(result, name, column) for name in bases for column in ("ms", "wall_ms")]
        for result in found
    ]
    return f"{found[0]['title']}:\n\n{table(header, rows)}"


def memory_gpu(content: dict) -> str:
    """Peak memory of a loss on a GPU at the base size, forward and backward."""
    providers = ("ours", "eager", "eager-scaled")
    rows = [
        [f"{result['label']}, {result['case']['dtype']}"]
        + [megabytes(result["providers"][name]["extra_bytes"]) for name in providers]
        for result in whole_passes(content)
    ]
    shape = shape_text(content["results"][0]["case"])
    header = ["loss", *(f"{_name(name)}, MB" for name in providers)]
    return f"{table(header, rows)}\n\nPeak beyond inputs and gradients; {shape}; {machine_text(content)}."


def significance(content: dict) -> str:
    """The significance prior, all its cases."""
    providers = [name for name in content["results"][0]["providers"] if name != "ours"]
    header = ["case", "pad_kernels, ms", *(f"{_name(name)}, ms" for name in providers)]
    rows = [
        [r["title"], _milliseconds(r["providers"]["ours"])]
        + [_milliseconds(r["providers"].get(name)) for name in providers]
        for r in content["results"]
    ]
    kind = f"GPU time; {_late_note(content)}" if content["machine"].get("gpu") else ""
    return f"{table(header, rows)}\n\n{kind}{machine_text(content)}."


def sweep(content: dict) -> str:
    """Speed over all sizes of the sweep, against eager and eager written well."""
    header = ["loss", "dtype", "speed-up over", "sizes", "median", "lowest", "lowest at"]
    rows = [
        [row["label"], row["dtype"], row["base"], str(row["sizes"]), f"{row['median']:.1f}x", f"{row['lowest']:.2f}x",
         row["at"]]
        for row in content["sweep"]
        if "+backward" in row["label"] or row["lowest"] < 1
    ]  # fmt: skip
    count = max(row["sizes"] for row in content["sweep"])
    return (
        f"{table(header, rows)}\n\n{count} sizes, 16 utterances each; sizes at which the baseline's result is wrong "
        f"are left out; {machine_text(content)}."
    )


def small_batches(content: dict) -> str:
    """Small batches: times of the calls, against eager and eager written well."""
    bases = ("eager", "eager-scaled")
    header = ["loss", "size", "pad_kernels, ms", *(f"{_name(name)}, ms" for name in bases)]
    header += [f"vs {name}" for name in bases]
    rows = [
        [result["label"], result["case"]["size"]]
        + [_milliseconds(result["providers"].get(name)) for name in ("ours", *bases)]
        + [_speed_up(result, name, digits=2) for name in bases]
        for result in content["results"]
        if result["case"]["size"] in SMALL_BATCHES and result["case"]["dtype"] == "float32"
    ]
    return (
        f"{table(header, rows)}\n\nfloat32; medians and, in brackets, the 20th to 80th percentile; "
        f"{machine_text(content)}."
    )


def step(content: dict) -> str:
    """The whole step: time, peak memory, and the share of PAD."""
    rows = []
    for result in content["results"]:
        variants, parts = result["variants"], result.get("parts_ms")
        ratios = [step_bench.relative(result, name, "plain") for name in ("eager", "ours")]
        cells = [_seconds(variants[name]) for name in step_bench.VARIANTS]
        cells += ["-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
        cells += [megabytes(variants[name]["peak_bytes"]) for name in step_bench.VARIANTS]
        timed = parts is not None and variants["ours"]["ms"]
        share = f"{100 * sum(parts.values()) / variants['ours']['ms']['p50']:.1f} %" if timed else "-"
        rows.append([result["label"], *cells, share])
    names = [_name(name) for name in step_bench.VARIANTS]
    header = ["audio", *(f"{name}, s" for name in names), "eager / plain", "pad_kernels / plain"]
    header += [*(f"{name}, MB" for name in names), "PAD's share of the step"]
    first = content["results"][0]
    steps = first["variants"]["plain"]["ms"]["rounds"]
    kind = "time between events, waits for the host included" if step_bench.any_late(content) else "GPU time"
    what = f"{kind[0].upper()}{kind[1:]}, median" if content["machine"].get("gpu") else "Median"
    wrong = [result["label"] for result in content["results"] if not result["correct"]]
    note = f"losses or priors of eager and pad_kernels differ at {', '.join(wrong)}; " if wrong else ""
    return (
        f"{table(header, rows)}\n\n{what} of {steps} steps, {first['case']['precision']}; "
        f"peak memory beyond models and optimizer; {note}{machine_text(content)}."
    )


def scaling(content: dict) -> str:
    """A step in one process and in two."""
    rows = []
    for processes, found in content["processes"].items():
        low, median, high = (found[name] / 1e3 for name in ("p20", "p50", "p80"))
        audio = int(processes) * content["seconds_of_audio"] / median
        rows.append([processes, f"{median:.2f} ({low:.2f}-{high:.2f})", f"{audio:.2f} s"])
    one, two = (content["processes"][name]["p50"] for name in ("1", "2"))
    return (
        f"{table(['processes', 'step, s (20th to 80th percentile)', 'audio per second'], rows)}\n\n"
        f"Twice the audio in {two / one:.2f} times the time; each process: {machine_text(content)}."
    )


def teacher_cache(content: dict) -> str:
    """What a large cache of a teacher's outputs costs, by the way it is kept."""
    kinds = content["kinds"].values()

    def times(what: str) -> list[str]:
        values = [[found[what][key] for key in ("median", "min")] for found in kinds]
        return [
            "{} ({})".format(*(f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in pair)) for pair in values
        ]

    rows = [
        ["write a text, us", *times("write_us")],
        ["open, ms", *times("open_warm_ms")],
        ["open, not in memory, ms", *times("open_cold_ms")],
        ["read a text, us", *times("read_warm_us")],
        ["read a text, not in memory, us", *times("read_cold_us")],
        ["files", *(f"{found['files']:,}" for found in kinds)],
        ["on disk, GB", *(f"{found['bytes_on_disk'] / 1e9:.2f}" for found in kinds)],
    ]
    return (
        f"{table(['', *content['kinds']], rows)}\n\nMedian (best) of rounds in which the two took turns; "
        f"{content['texts']:,} texts of {content['tokens']} tokens, {content['width']} wide, {content['dtype']}, with "
        f"priors; {machine_text(content)}, shared with other work."
    )


def gpu_status(losses: dict | None) -> str:
    """Whether anything ran on a GPU, and where to read of it."""
    if losses is None:
        return "**Nothing in this version has been run on a GPU.** Neither its results nor its speed there are known."
    where = f"Run on {processor_name(losses['machine'])} with torch {losses['machine']['versions']['torch']}"
    return f"{where}; [benchmarks](benchmarks_gpu.md) has the times, and marks results that are wrong."


def gpu_goals(losses: dict, prior: dict, steps: dict, compiled: dict | None) -> str:
    """The goals on a GPU, over all sizes."""
    drawn = table(["goal", "wanted", "measured", "met"], goals.rows(losses, prior, steps, compiled))
    return (
        f"{drawn}\n\nMeasured: the lowest and the highest of all losses and sizes; those at which the baseline is "
        f"wrong are left out. The worst one decides. {machine_text(losses)}."
    )


def targets(content: dict) -> str:
    """What a run was to reach, and whether it did."""
    met = {None: "not measured", True: "yes", False: "no"}
    rows = [
        [bar["bar"], f"{number(bar['wanted'])} {bar['unit']}".strip(), number(bar["measured"]), met[bar["met"]]]
        for bar in content["bars"]
    ]
    return table(["target", "required", "measured", "met"], rows)
