"""Draws the measured tables of README.md and docs/ from the committed results: `python -m benchmarks.report`.

What stands between `<!-- NAME -->` and `<!-- /NAME -->` is replaced; no figure there is typed by hand.
"""

import re
import statistics
from pathlib import Path

from benchmarks import results, step_bench
from benchmarks.plot import plot_step
from benchmarks.tables import megabytes, number

ROOT = results.FOLDER.parent.parent
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("scaling", "training", "kernels")))
NOT_MEASURED = "Not measured yet."
STUDENTS = ("chance", "undistilled", "distilled", "shuffled")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _machine(content: dict) -> str:
    machine = content["machine"]
    versions = machine["versions"]
    allocator = "".join(f", {name}={value}" for name, value in machine.get("allocator", {}).items())
    return f"{machine['cpu']}, {machine['threads']} threads, torch {versions['torch']}{allocator}"


def _milliseconds(row: dict | None) -> str:
    if row is None:
        return "-"
    return (
        f"{row['ms']['p50']:.3g} ({row['ms']['p20']:.3g}-{row['ms']['p80']:.3g})"
        if row["correct"]
        else "wrong"
    )


def _against(result: dict, base: str) -> str:
    value = results.ratio(result, "ours", base)
    return "-" if value is None else f"{value:.1f}x"


def _bars(content: dict) -> str:
    met = {None: "not measured", True: "yes", False: "no"}
    rows = [
        [bar["bar"], f"{number(bar['wanted'])} {bar['unit']}", number(bar["measured"]), met[bar["met"]]]
        for bar in content["bars"]
    ]
    return "\n\n" + _table(["goal", "wanted", "measured", "met"], rows)


def align(content: dict) -> str:
    """The losses at the base size: float32, and a whole pass in bfloat16."""
    base = [r for r in content["results"] if r["case"]["size"] == "base"]
    found = [r for r in base if r["case"]["dtype"] == "float32"]
    found += [r | {"label": f"{r['label']}, bfloat16"} for r in base
              if r["case"]["dtype"] == "bfloat16" and r["case"]["direction"] == "forward+backward"]  # fmt: skip
    providers = [name for name in found[0]["providers"] if name != "ours"]
    header = ["loss", "pad_kernels, ms", *(f"{name}, ms" for name in providers)]
    header += [*(f"faster than {name}" for name in providers)]
    rows = [
        [r["label"], _milliseconds(r["providers"].get("ours"))]
        + [_milliseconds(r["providers"].get(name)) for name in providers]
        + [_against(r, name) for name in providers]
        for r in found
    ]
    return (
        f"{_table(header, rows)}\n\n{found[0]['title']}; medians and, in brackets, 20th to 80th percentile; "
        + (f"{_machine(content)}.")
    )


def significance(content: dict) -> str:
    """The significance prior, all its cases."""
    providers = [name for name in content["results"][0]["providers"] if name != "ours"]
    header = ["case", "pad_kernels, ms", *(f"{name}, ms" for name in providers)]
    rows = [
        [f"{r['title']}, {r['label']}", _milliseconds(r["providers"]["ours"])]
        + [_milliseconds(r["providers"].get(name)) for name in providers]
        for r in content["results"]
    ]
    return f"{_table(header, rows)}\n\n{_machine(content)}."


def demo(content: dict) -> str:
    """Word hit rate and probe accuracy, mean over seeds with the lowest and highest."""
    runs = content["runs"]

    def cell(values: list[float]) -> str:
        return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"

    def row(title: str, pick) -> list[str]:
        picked = [pick(run) for run in runs]
        return [title, *(cell([p[name] for p in picked]) if name in picked[0] else "-" for name in STUDENTS)]

    rows = [
        row("best frame of a word lies within the word", lambda run: run["word_hit_rate"]),
        row(
            "intent accuracy of a linear probe",
            lambda run: {"chance": run["probe"]["chance"], **run["probe_accuracy"]},
        ),
        row("loss on held-out speech", lambda run: run["held_out_loss"]),
    ]
    if all(run.get("word_hit_rate_recordings") for run in runs):
        rows.insert(1, row("the same on five real recordings", lambda run: run["word_hit_rate_recordings"]))
    seconds = statistics.mean(sum(run["seconds"].values()) for run in runs)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return (
        f"{_table(['', *STUDENTS], rows)}\n\nMean over seeds {seeds} (lowest-highest), test split; "
        f"{seconds:.0f} s a run; {_machine(content)}."
    )


def sweep(content: dict) -> str:
    """Speed over all sizes of the sweep, against eager and eager written well."""
    header = ["loss", "dtype", "faster than", "sizes", "median", "lowest", "at"]
    rows = [
        [row["label"], row["dtype"], row["base"], str(row["sizes"]), f"{row['median']:.1f}x", f"{row['lowest']:.2f}x",
         row["at"]]
        for row in content["sweep"]
        if "+backward" in row["label"] or row["lowest"] < 1
    ]
    count = max(row["sizes"] for row in content["sweep"])
    return (
        f"{_table(header, rows)}\n\n{count} sizes, 16 utterances each; fewer where the other's result is wrong; "
        f"{_machine(content)}."
    )


def step(content: dict) -> str:
    """The whole step: time, peak memory, and the share of PAD."""
    rows = []
    for result in content["results"]:
        variants, parts = result["variants"], result.get("parts_ms")
        ratios = [step_bench.relative(result, name, "plain") for name in ("eager", "ours")]
        cells = [f"{variants[name]['ms']['p50'] / 1e3:.2f}" for name in step_bench.VARIANTS]
        cells += ["wrong" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
        cells += [megabytes(variants[name]["peak_bytes"]) for name in step_bench.VARIANTS]
        share = "-" if parts is None else f"{100 * sum(parts.values()) / variants['ours']['ms']['p50']:.1f} %"
        rows.append([result["label"], *cells, share])
    header = ["audio", *(f"{name}, s" for name in step_bench.VARIANTS), "eager / plain", "ours / plain"]
    header += [*(f"{name}, MB" for name in step_bench.VARIANTS), "of it PAD"]
    first = content["results"][0]
    return (
        f"{_table(header, rows)}\n\nMedian of {first['variants']['ours']['ms']['rounds']} steps, "
        f"{first['case']['precision']}; peak memory beyond models and optimizer; {_machine(content)}."
    )


def quality(content: dict) -> str:
    """Each preset: intent probe and where its units lie, mean over seeds with the lowest and highest."""
    by_preset: dict[str, list[dict]] = {}
    for run in content["runs"]:
        by_preset.setdefault(run["preset"], []).append(run)

    def cell(values: list[float]) -> str:
        return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"

    units = {"pad-slocal": "prior, pool", "no-prior": "no prior, pool", "no-span-pool": "prior, no pool"}
    rows = []
    for preset, runs in by_preset.items():
        rows.append([
            preset,
            cell([run["probe_accuracy"] for run in runs]),
            cell([run["frame_hits"]["hit_rate"] for run in runs]),
            *(cell([run["unit_hits"][name]["hit_rate"] for run in runs]) for name in units),
        ])  # fmt: skip
    first = next(iter(by_preset.values()))
    chances = [statistics.mean(run["unit_hits"][name]["chance"] for run in first) for name in units]
    frames = statistics.mean(run["frame_hits"]["chance"] for run in first)
    rows.append(["chance", f"{1 / 24:.3f}", f"{frames:.3f}", *(f"{chance:.3f}" for chance in chances)])
    header = ["preset", "intent accuracy", "best frame in the word"]
    header += [f"best span on the word: {which}" for which in units.values()]
    seeds = sorted({run["seed"] for run in content["runs"]})
    return (
        f"{_table(header, rows)}\n\nMean over seeds {', '.join(map(str, seeds))} (lowest-highest), test split, "
        f"{content['steps']} steps; {_machine(content)}."
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
        f"{_table(['processes', 'a step, s (20th to 80th percentile)', 'audio in a second'], rows)}\n\n"
        f"Twice the audio in {two / one:.2f} times the time; {_machine(content)} in each process."
    )


SECTIONS = {"sweep": (sweep, "sweep_cpu.json"), "step": (step, "step_cpu.json"),
            "step-kept": (step, "step_cpu_kept.json"), "quality": (quality, "quality.json"),
            "align": (align, "align_cpu.json"), "align-kept": (align, "align_cpu_kept.json"),
            "align-epyc": (align, "align_cpu_epyc.json"),
            "significance": (significance, "significance_cpu.json"),
            "demo": (demo, "demo.json"), "scaling": (scaling, "scaling_cpu.json")}  # fmt: skip


def _section(draw, path: Path) -> str:
    content = results.read_json(path)
    return draw(content) + (_bars(content) if content.get("bars") else "")


def fill(text: str, folder: Path = results.FOLDER) -> str:
    """A page's text with its tables drawn anew."""
    for name, (draw, file) in SECTIONS.items():
        body = _section(draw, folder / file) if (folder / file).is_file() else NOT_MEASURED
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text, flags=re.S)
    return text


if __name__ == "__main__":
    if (results.FOLDER / "step_cpu.json").is_file():
        plot_step(results.read_json(results.FOLDER / "step_cpu.json"), results.FOLDER / "step.png")
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
