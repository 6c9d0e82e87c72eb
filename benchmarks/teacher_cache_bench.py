"""The teacher's cache at the size of a large corpus: shards, and beside them one file for each text.

`python -m benchmarks.teacher_cache_bench`: random embeddings of 300,000 texts; what it takes to write them, to open the
cache and to read texts in random order, once with their pages dropped from memory, and what lies on the disk.
"""

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from benchmarks import accelerator, machine, results
from pad.digests import digest_of_tensors
from pad.files import whole_file
from pad.step import teacher_cache
from pad.step.teacher_cache import Key

TEACHER = "a teacher"
ROUNDS = 10


class OneFilePerText:
    """What shards are compared with: a file for each text, checked as they are."""

    def __init__(self, folder: Path, teacher: str, with_prior: bool):
        self.folder, self.teacher = folder, teacher

    def put(self, key, embeddings, prior):
        path, name = self.path(key)
        entry = {"embeddings": embeddings, "prior": prior}
        with whole_file(path, cache=True) as file:
            file.write(save(entry, {"key": name, "content": digest_of_tensors(entry)}))

    def get(self, key, device):
        path, name = self.path(key)
        with safe_open(path, framework="pt") as file:
            said, found = file.metadata(), {tensor: file.get_tensor(tensor) for tensor in file.keys()}
        assert said["key"] == name and said["content"] == digest_of_tensors(found)
        return found["embeddings"].to(device), found["prior"].to(device)

    def write(self):
        """Each is written at once."""

    def path(self, key: Key) -> tuple[Path, str]:
        name = teacher_cache.name_of(self.teacher, key).hex()
        return self.folder / name[:2] / f"{name[2:]}.safetensors", name


KINDS = {"one file per text": OneFilePerText, "shards": teacher_cache._Folder}


def key_of(number: int, tokens: int) -> Key:
    return Key((101, number, *range(tokens - 2)), (False, *[True] * (tokens - 2), False), "None")


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def forget(folder: Path) -> None:
    """Drop the pages of all files from memory; their names stay there."""
    os.sync()
    for path in files_of(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(cache, numbers: list[int], tokens: int) -> None:
    for number in numbers:
        assert cache.get(key_of(number, tokens), "cpu") is not None


def measure(options, scratch: Path) -> dict[str, dict]:
    """Rounds of writing, opening and reading, in which the kinds take turns."""
    folders = {name: scratch / name.replace(" ", "-") for name in KINDS}
    caches = {name: kind(folders[name], TEACHER, True) for name, kind in KINDS.items()}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in KINDS}

    def note(name: str, what: str, value: float) -> None:
        found[name].setdefault(what, []).append(value)

    each = options.texts // ROUNDS
    dtype = getattr(torch, options.dtype)
    for turn in range(ROUNDS):
        embeddings = torch.randn(each, options.tokens, options.width).to(dtype)
        prior = torch.rand(each, options.tokens)
        for name in sorted(KINDS, reverse=bool(turn % 2)):
            cache = caches[name]

            def write(cache=cache, embeddings=embeddings, prior=prior, turn=turn):
                for row in range(each):
                    cache.put(key_of(turn * each + row, options.tokens), embeddings[row].clone(), prior[row].clone())
                cache.write()

            note(name, "write_us", seconds(write) / each * 1e6)
    picked = random.Random(0)
    for state in ("cold", "warm"):
        for turn in range(options.rounds):
            numbers = picked.sample(range(each * ROUNDS), min(options.reads, each * ROUNDS))
            for name in sorted(KINDS, reverse=bool(turn % 2)):
                kind, folder = KINDS[name], folders[name]
                if state == "cold":
                    forget(folder)
                note(
                    name,
                    f"open_{state}_ms",
                    seconds(lambda kind=kind, folder=folder: kind(folder, TEACHER, True)) * 1e3,
                )
                cache = kind(folder, TEACHER, True)
                if state == "warm":
                    read(cache, numbers, options.tokens)
                taken = seconds(lambda cache=cache, numbers=numbers: read(cache, numbers, options.tokens))
                note(name, f"read_{state}_us", taken / len(numbers) * 1e6)
    summary = {}
    for name, folder in folders.items():
        sizes = [path.stat() for path in files_of(folder)]
        summary[name] = {what: {"min": min(values), "median": statistics.median(values), "max": max(values)}
                         for what, values in found[name].items()}  # fmt: skip
        summary[name]["files"] = len(sizes)
        summary[name]["bytes"] = sum(size.st_size for size in sizes)
        summary[name]["bytes_on_disk"] = 512 * sum(size.st_blocks for size in sizes)
    return summary


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=300_000)
    parser.add_argument("--tokens", type=int, default=12, help="of each text (default: 12)")
    parser.add_argument("--width", type=int, default=384, help="of the embeddings (default: 384)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--reads", type=int, default=10_000, help="texts read in a round (default: 10,000)")
    parser.add_argument("--rounds", type=int, default=5, help="of opening and reading (default: 5)")
    parser.add_argument(
        "--scratch", type=Path, help="folder for the caches, which are removed (default: a temporary one)"
    )
    parser.add_argument("--output", type=Path, default=results.FOLDER / "teacher_cache.json")
    options = parser.parse_args()
    content = {"machine": machine.describe(accelerator.Cpu(), torch.get_num_threads())}
    content |= {name: getattr(options, name) for name in ("texts", "tokens", "width", "dtype", "reads")}
    scratch = Path(tempfile.mkdtemp(dir=options.scratch))
    try:
        content["kinds"] = measure(options, scratch)
    finally:
        shutil.rmtree(scratch)
    for name, found in content["kinds"].items():
        print(name)
        for what, value in found.items():
            shown = (
                ", ".join(f"{key} {figure:.1f}" for key, figure in value.items()) if isinstance(value, dict) else value
            )
            print(f"  {what}: {shown}")
    results.write_json(options.output, content)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
