"""Runs `pad demo` for several seeds and keeps the reports together in one file of results.

`python -m benchmarks.demo_seeds [--scratch] [--seeds 0 1 2] [--folder runs/demo-seeds]`. A seed whose report lies in
the folder already is not run again, so that an interrupted run goes on where it was.
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
    parser.add_argument("--scratch", action="store_true", help="the small student without pretraining")
    parser.add_argument("--folder", type=Path, help="default: runs/demo-seeds, runs/demo-scratch-seeds with --scratch")
    parser.add_argument("--output", type=Path, help="default: demo.json, demo_scratch.json of the committed results")
    arguments = parser.parse_args()
    kind = "-scratch" if arguments.scratch else ""
    runs = arguments.folder or Path(f"runs/demo{kind}-seeds")
    output = arguments.output or results.FOLDER / f"demo{kind.replace('-', '_')}.json"
    reports = []
    for seed in arguments.seeds:
        folder = runs / f"seed-{seed}"
        if not (folder / "report.json").is_file():
            command = [sys.executable, "-m", "pad.cli", "demo", "--seed", str(seed), "--output", str(folder)]
            command += ["--scratch"] if arguments.scratch else []
            subprocess.run(command, check=True)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if report["scratch"] != arguments.scratch:
            parser.error(f"{folder} holds a demo {'with' if report['scratch'] else 'without'} --scratch")
        reports.append(report)
    results.write_json(
        output, {"machine": machine.describe(accelerator.Cpu(), torch.get_num_threads()), "runs": reports}
    )
    print(f"written: {output}")


if __name__ == "__main__":
    main()
