"""Which use of attention makes distillation better than none: runs of a pretrained encoder, and their comparison.

    python -m pad.demo.recordings runs/recordings
    python -m benchmarks.quality_bench [--seeds 0 1 2] [--configurations span "span paper"] [--threads 1]

Whisper tiny.en is distilled from MiniLM on synthetic sentences with each configuration (quality_configurations.py) and
each seed, and scored on sentences and voices it has not heard and on real recordings. Seeds below 100 are scored on the
dev split, the others on test. Each run is kept in its own file in --runs as soon as it ends: a benchmark that was
stopped goes on where it was, and processes with different seeds may share the folder. At the end, and with
--compare alone, all runs of the recipe are compared: means, and differences from the same level without priors, with
95 % bootstrap intervals over seeds and utterances. Runs of other recipes (--steps, --learning-rate) are set beside
them as the sweep that chose it.
"""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table
from transformers.utils import logging

from benchmarks import accelerator, machine, results, tables
from benchmarks.quality_comparison import compare, read_runs
from benchmarks.quality_configurations import CONFIGURATIONS, FIRST, can_run
from benchmarks.quality_recipe import Recipe
from pad.files import write_text

IN_ORDER = (*FIRST, *(name for name in CONFIGURATIONS if name not in FIRST))


def of_recipe(runs: Path, recipe: Recipe) -> Path:
    """The folder of a recipe's runs."""
    return runs / f"{recipe.steps}-steps-{recipe.learning_rate:g}"


def run_file(runs: Path, name: str, seed: int) -> Path:
    """Where a run is kept in its recipe's folder."""
    return runs / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}.json"


def run_missing(runs: Path, names: list[str], seeds: list[int], folder: Path, recordings: Path, recipe: Recipe) -> None:
    """Run each configuration with each seed unless its file is there; every configuration before the next seed."""
    from benchmarks.quality_corpus import build, packaged_encoder
    from benchmarks.quality_run import Bench

    wanted = [(seed, name) for seed in seeds for name in names if can_run(CONFIGURATIONS[name], seed)]
    wanted = [(seed, name) for seed, name in wanted if not run_file(runs, name, seed).is_file()]
    if not wanted:
        return
    checkpoint = packaged_encoder(folder)
    bench = Bench(build(folder / "speech.pt", checkpoint, recordings), str(checkpoint), recipe)
    for number, (seed, name) in enumerate(wanted, start=1):
        if run_file(runs, name, seed).is_file():  # by another process
            continue
        found = bench.run(CONFIGURATIONS[name], seed)
        runs.mkdir(parents=True, exist_ok=True)
        write_text(run_file(runs, name, seed), json.dumps({"configuration": name, **found}) + "\n")
        print(f"{number}/{len(wanted)} {name}, seed {seed}: {found['rates']} {found['seconds']}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--configurations", nargs="+", choices=IN_ORDER, default=list(IN_ORDER), metavar="NAME")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--runs", type=Path, default=results.FOLDER / "quality_runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="of the speech and the encoder")
    parser.add_argument("--recordings", type=Path, default=Path("runs/recordings"))
    parser.add_argument("--output", type=Path, default=results.FOLDER / "quality.json")
    parser.add_argument("--compare", action="store_true", help="run nothing; only compare the runs found")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps, learning_rate=arguments.learning_rate)
    runs = of_recipe(arguments.runs, recipe)
    if not arguments.compare:
        run_missing(runs, arguments.configurations, arguments.seeds, arguments.folder, arguments.recordings, recipe)
    others = sorted(folder for folder in arguments.runs.iterdir() if folder.is_dir() and folder != runs)
    content = {
        "machine": machine.describe(accelerator.Cpu(), arguments.threads),
        "recipe": asdict(recipe),
        "splits": {split: compare(of_split) for split, of_split in read_runs(runs).items()},
        "sweep": [{"recipe": folder.name, "rows": compare(read_runs(folder)["dev"])} for folder in others],
    }
    print_comparison(content)
    results.write_json(arguments.output, content)
    print(f"written: {arguments.output}")


def print_comparison(content: dict) -> None:
    """Rates, and differences from the first baseline, in a table for each split."""
    console = tables.make_console()
    for split, rows in content["splits"].items():
        if not rows:
            continue
        measures = list(rows[0]["measures"])
        table = Table("configuration", "seeds", *measures, title=split)
        for row in rows:
            table.add_row(
                row["configuration"], str(len(row["seeds"])), *(_cell(row["measures"][name]) for name in measures)
            )
        console.print(table)


def _cell(found: dict) -> str:
    text = f"{found['rate']:.3f}"
    for difference in list(found["differences"].values())[:1]:
        low, high = difference["interval"]
        text += f"\n{difference['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    return text


if __name__ == "__main__":
    main()
