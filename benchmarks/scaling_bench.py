"""A distillation step in one process and in two that share gradients by gloo, one thread each.

`python -m benchmarks.scaling_bench`: full-size models with random weights, one utterance of 5 s in each process; what
two processes take longer than one is the price of the exchange, and of the memory that they share.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from benchmarks import accelerator, machine, results, timing
from benchmarks.step_bench import Case, Step


def _process(rank: int, world: int, rounds: int, small: bool, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    step = Step(Case(5, 1), "cpu", small=small)
    step.student.masked_spec_embed.requires_grad_(False)  # used by SpecAugment alone
    if world > 1:
        step.student = DistributedDataParallel(step.student)
        step.student.config = step.student.module.config
    seconds = []
    for _ in range(rounds + 1):
        distributed.barrier()
        begin = time.perf_counter()
        step.run("ours")
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        torch.save(seconds[1:], f"{folder}/seconds-{world}.pt")
    distributed.destroy_process_group()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each (default: 5)")
    parser.add_argument("--small", action="store_true", help="tiny models: a test of the benchmark itself")
    parser.add_argument("--output", type=Path, default=results.FOLDER / "scaling_cpu.json")
    options = parser.parse_args()
    content = {"machine": machine.describe(accelerator.Cpu(), 1), "seconds_of_audio": 5, "processes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2):
            arguments = (world, options.rounds, options.small, folder)
            multiprocessing.spawn(_process, arguments, nprocs=world)
            found = timing.summarize(torch.load(f"{folder}/seconds-{world}.pt", weights_only=True))
            content["processes"][str(world)] = found
            low, median, high = (found[name] / 1e3 for name in ("p20", "p50", "p80"))
            print(f"{world} processes: {median:.2f} s a step ({low:.2f}-{high:.2f})")
    one, two = (content["processes"][world]["p50"] for world in ("1", "2"))
    print(f"twice the audio in {two / one:.2f} times the time")
    results.write_json(options.output, content)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
