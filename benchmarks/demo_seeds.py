"""Runs `pad demo` for several seeds and keeps the reports together in one file of results.

`python -m benchmarks.demo_seeds [--seeds 0 1 2] [--folder runs/demo-seeds]`. A seed whose report lies in the
folder already is not run again, so that an interrupted run goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import accelerator, machine, results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument("--output", type=Path, default=results.FOLDER / "demo.json")
    arguments = parser.parse_args()
    reports = []
    for seed in arguments.seeds:
        folder = arguments.folder / f"seed-{seed}"
        if not (folder / "report.json").is_file():
            command = [sys.executable, "-m", "pad.cli", "demo", "--seed", str(seed), "--output", str(folder)]
            subprocess.run(command, check=True)
        reports.append(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    results.write_json(
        arguments.output, {"machine": machine.describe(accelerator.Cpu(), torch.get_num_threads()), "runs": reports}
    )
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
