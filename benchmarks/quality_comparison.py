"""Runs of the quality benchmark compared: means over seeds, and paired differences, with 95 % intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import results
from benchmarks.quality_configurations import CONFIGURATIONS, against
from pad.demo.intervals import Counts, interval

Runs = dict[int, dict]  # by seed


def read_runs(folder: Path) -> dict[str, dict[str, Runs]]:
    """The runs in a folder by split, configuration (in the order of CONFIGURATIONS) and seed."""
    found: dict[str, dict[str, Runs]] = {split: {name: {} for name in CONFIGURATIONS} for split in ("dev", "test")}
    for file in sorted(folder.glob("*.json")):
        run = results.read_json(file)
        if run["configuration"] in CONFIGURATIONS:
            found[run["split"]][run["configuration"]][run["seed"]] = run
    recipes = {str(run["recipe"]) for split in found.values() for runs in split.values() for run in runs.values()}
    if len(recipes) > 1:
        raise SystemExit(f"{folder} holds runs of different recipes: {'; '.join(sorted(recipes))}")
    return found


def compare(runs: dict[str, Runs]) -> list[dict]:
    """A row for each configuration of a split that has runs."""
    return [_row(name, of_name, runs) for name, of_name in runs.items() if of_name]


def _row(name: str, runs: Runs, others: dict[str, Runs]) -> dict:
    row = {"configuration": name, "hypothesis": CONFIGURATIONS[name].hypothesis, "seeds": sorted(runs), "measures": {}}
    for measure in next(iter(runs.values()))["scores"]:
        counts = _counts(runs, measure, sorted(runs))
        found = {
            "rate": float(np.mean([run.rate for run in counts])),
            "interval": interval(counts),
            "by_seed": [run.rate for run in counts],
            "chance": counts[0].chance_rate,
            "trials": int(counts[0].trials.sum()),
            "differences": {},
        }
        for baseline in against(name):
            seeds = sorted(set(runs) & set(others.get(baseline, {})))
            if seeds:
                ours, theirs = _counts(runs, measure, seeds), _counts(others[baseline], measure, seeds)
                low, high = interval(ours, theirs)
                found["differences"][baseline] = {
                    "difference": float(np.mean([a.rate - b.rate for a, b in zip(ours, theirs)])),
                    "interval": (low, high),
                    "seeds": seeds,
                    "verdict": "better" if low > 0 else "worse" if high < 0 else "open",
                }
        row["measures"][measure] = found
    return row


def _counts(runs: Runs, measure: str, seeds: list[int]) -> list[Counts]:
    scores = [runs[seed]["scores"][measure] for seed in seeds]
    return [Counts(*(np.array(score[part]) for part in ("hits", "trials", "chance"))) for score in scores]
