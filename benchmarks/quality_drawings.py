"""The tables of docs/quality.md: each function makes one, as Markdown, from the content of its results file."""

import statistics
from collections.abc import Iterable

from benchmarks.drawings import machine_text, mean_and_range, processor_name, table
from benchmarks.quality_configurations import CONTROLS

PRIOR_LAYERS = {
    "heaviest": "prior on the heaviest 5 % of frames",
    "entropy": "entropy / log M",
    "agreement": "rank correlation with other layers",
    "voiced": "voiced over silent frames",
}


def demo(content: dict) -> str:
    """The scores of `pad demo` by student: of one seed with 95 % intervals, of several from lowest to highest."""
    runs = content["runs"]
    columns = ("chance", *runs[0]["held_out_loss"])

    def row(title: str, measure: str, pick) -> list[str]:
        cells = []
        for name in columns:
            values = [pick(run).get(name) for run in runs]
            ends = runs[0].get("intervals", {}).get(measure, {}).get(name)
            if None in values:
                cells.append("-")
            elif len(runs) == 1:
                cells.append(f"{values[0]:.3f}" + (f" ({ends[0]:.3f}-{ends[1]:.3f})" if ends else ""))
            else:
                cells.append(mean_and_range(values))
        return [title, *cells]

    rows = [row("word hit rate, synthetic sentences", "word_hit_rate", lambda run: run["word_hit_rate"])]
    for source, found in runs[0]["word_hit_rate_real"].items():
        title = f"word hit rate, real speech: {source}, {found['words']} words"
        rows.append(row(title, f"word_hit_rate_real: {source}", lambda run, s=source: run["word_hit_rate_real"][s]))
    if "retrieval_at_1" in runs[0]:
        title = f"right sentence of {runs[0]['retrieval_sentences']} first"
        rows.append(row(title, "retrieval_at_1", lambda run: run["retrieval_at_1"]))
    rows.append(
        row(
            "intent accuracy of a linear probe",
            "probe_accuracy",
            lambda run: {"chance": run["probe"]["chance"], **run["probe_accuracy"]},
        )
    )
    rows.append(row("loss on held-out speech", "held_out_loss", lambda run: run["held_out_loss"]))
    seeds = ", ".join(str(run["seed"]) for run in runs)
    what = f"Seed {seeds} (95 % interval)" if len(runs) == 1 else f"Mean over seeds {seeds} (lowest-highest)"
    return f"{table(['', *columns], rows)}\n\n{what}, test split; {machine_text(content)}."


def _with_interval(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['rate']:.3f} ({low:.3f}-{high:.3f})"


def _difference(found: dict) -> str:
    low, high = found["interval"]
    text = f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    return text if found["verdict"] == "open" else f"**{text}**"


def _splits(content: dict) -> Iterable[tuple[str, list[dict]]]:
    return ((split, rows) for split, rows in content["splits"].items() if rows)


def quality(content: dict) -> str:
    """The scores of each configuration with 95 % intervals, a table for each split."""
    parts = []
    for split, rows in _splits(content):
        measures = rows[0]["measures"]
        header = ["configuration", "seeds", *measures]
        cells = [
            [
                row["configuration"],
                str(len(row["seeds"])),
                *(_with_interval(row["measures"][name]) for name in measures),
            ]
            for row in rows
        ]
        cells.append(["chance", "", *(f"{found['chance']:.3f}" for found in measures.values())])
        trials = "; ".join(f"{name}: {found['trials']}" for name, found in measures.items())
        parts.append(f"{split.capitalize()} split ({trials}):\n\n{table(header, cells)}")
    recipe = content["recipe"]
    what = f"{recipe['steps']} steps of {recipe['batch_size']} utterances at {recipe['learning_rate']:g}"
    return (
        "\n\n".join(parts)
        + f"\n\nMean over seeds (95 % interval over seeds and utterances); {what}; {machine_text(content)}."
    )


def quality_verdicts(content: dict) -> str:
    """Each hypothesis on a prior: paired differences from none at its level, and of several seeds from controls."""
    parts = []
    for split, rows in _splits(content):
        cells = []
        for row in rows:
            measures = row["measures"]
            for baseline in next(iter(measures.values()))["differences"]:
                found = [measures[name]["differences"][baseline] for name in measures]
                seeds = len(found[0]["seeds"])
                if seeds > 1 or not any(baseline in controls for controls in CONTROLS.values()):
                    cells.append(
                        [row["configuration"], row["hypothesis"], baseline, str(seeds), *map(_difference, found)]
                    )
        if cells:
            header = ["configuration", "hypothesis", "minus", "seeds", *rows[0]["measures"]]
            parts.append(f"{split.capitalize()} split:\n\n{table(header, cells)}")
    return "\n\n".join(parts) or "No pair of runs yet."


def quality_sweep(content: dict) -> str:
    """The recipes tried on the dev split: rates of the configurations, over the seeds that every recipe has."""
    own = content["recipe"]
    chosen = {"recipe": f"{own['steps']}-steps-{own['learning_rate']:g}", "rows": content["splits"]["dev"]}
    swept = {row["configuration"] for tried in content["sweep"] for row in tried["rows"]}
    tried_seeds = [{*row["seeds"]} for tried in content["sweep"] for row in tried["rows"]]
    common = sorted(set.intersection(*tried_seeds)) if tried_seeds else []
    cells = []
    for tried in (chosen, *content["sweep"]):
        steps, _, rate = tried["recipe"].split("-", 2)
        for row in tried["rows"]:
            if row["configuration"] in swept:
                places = [row["seeds"].index(seed) for seed in common]
                rates = [
                    f"{statistics.mean(found['by_seed'][place] for place in places):.3f}"
                    for found in row["measures"].values()
                ]
                cells.append([steps, rate, row["configuration"], ", ".join(map(str, common)), *rates])
    if not cells:
        return "No other recipe was tried yet."
    measures = chosen["rows"][0]["measures"]
    return table(["steps", "learning rate", "configuration", "seeds", *measures], cells)


def prior_layers(content: dict) -> str:
    """What tells a layer that looks at speech from a sink, without labels."""
    cells = [
        [source, str(row["layer"]), *(f"{row[name]:.3f}" for name in PRIOR_LAYERS)]
        for source, rows in content["sources"].items()
        for row in rows
    ]
    return f"{table(['speech', 'layer', *PRIOR_LAYERS.values()], cells)}\n\n{machine_text(content)}."


DEFAULT = "span weighed layers"  # as the preset that `pad distill` begins with
_CONTROLS = ("undistilled", "shuffled", "random")


def summary_rows(content: dict) -> list[list[str]]:
    """Rows for the table of README.md: what distillation gives, without a prior too, its controls, where measured."""
    titles = {
        "words, synthetic": "words found in unseen synthetic sentences",
        "words, prompts": "words found in real speech never trained on",
        "sentences, synthetic": "right one of {trials} sentences first",
    }
    split = "test" if any(row["configuration"] == DEFAULT for row in content["splits"]["test"]) else "dev"
    rows = {row["configuration"]: row for row in content["splits"][split]}
    if not {"span", DEFAULT} <= rows.keys():
        return []
    seeds = len(rows[DEFAULT]["seeds"])
    where = f"{processor_name(content['machine'])}; {split} split, {seeds} seed{'' if seeds == 1 else 's'}"
    fewest = min((len(rows[name]["seeds"]) for name in _CONTROLS if name in rows), default=seeds)
    where += f" (controls: {fewest})" if fewest != seeds else ""
    found = []
    for measure, title in titles.items():
        ours = rows[DEFAULT]["measures"][measure]
        controls = ", ".join(
            f"{name} {rows[name]['measures'][measure]['rate']:.3f}" for name in _CONTROLS if name in rows
        )
        plain = rows["span"]["measures"][measure]["rate"]
        text = f"{_with_interval(ours)}; without a prior {plain:.3f}, {controls}, chance {ours['chance']:.3f}"
        title = title.format(trials=ours["trials"])
        found.append([f"Distilling Whisper tiny.en in {content['recipe']['steps']} steps: {title}", text, where])
    return found


def quality_scratch(content: dict) -> str:
    """Each preset: intent probe and where its units lie, mean over seeds with the lowest and highest."""
    by_preset: dict[str, list[dict]] = {}
    for run in content["runs"]:
        by_preset.setdefault(run["preset"], []).append(run)
    units = {"pad-slocal": "prior, pool", "no-prior": "no prior, pool", "no-span-pool": "prior, no pool"}
    rows = []
    for preset, runs in by_preset.items():
        rows.append([
            preset,
            mean_and_range([run["probe_accuracy"] for run in runs]),
            mean_and_range([run["frame_hits"]["hit_rate"] for run in runs]),
            *(mean_and_range([run["unit_hits"][name]["hit_rate"] for run in runs]) for name in units),
        ])  # fmt: skip
    first = next(iter(by_preset.values()))
    chances = [statistics.mean(run["unit_hits"][name]["chance"] for run in first) for name in units]
    frames = statistics.mean(run["frame_hits"]["chance"] for run in first)
    rows.append(["chance", f"{1 / 24:.3f}", f"{frames:.3f}", *(f"{chance:.3f}" for chance in chances)])
    header = ["preset", "intent accuracy", "best frame in the word"]
    header += [f"best span on the word: {which}" for which in units.values()]
    seeds = sorted({run["seed"] for run in content["runs"]})
    return (
        f"{table(header, rows)}\n\nMean over seeds {', '.join(map(str, seeds))} (lowest-highest), test split, "
        f"{content['steps']} steps; {machine_text(content)}."
    )
