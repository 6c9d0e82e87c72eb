"""The JSON files of results: written whole or not at all, as far as a run has come, and looked up by case."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "results"


def write_json(path: Path, content: dict) -> None:
    """Write beside the target and rename, so that a reader never sees half a file."""
    content["machine"]["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


class Run:
    """The results of a run, saved after each case; `--resume` takes them up where a run before has ended.

    A run in which the GPU is lost goes on in a new process, without the provider that lost it.
    """

    def __init__(self, output: Path | None, description: dict, seconds: float | None = None, resume: bool = False):
        self.output, self.limit, self.begin = output, seconds, time.perf_counter()
        self.content = {"machine": description, "results": [], "left_out": [], "lost": [], "seconds": 0.0}
        if resume and output is not None and output.exists():
            before = read_json(output)
            refuse_other_machine(output, before["machine"], description)
            self.content |= {name: before[name] for name in ("results", "lost", "seconds") if name in before}
        self.seconds_before = self.content["seconds"]

    @property
    def results(self) -> list[dict]:
        return self.content["results"]

    def lost(self) -> set[str]:
        """Providers after which the GPU did not answer."""
        return {entry["provider"] for entry in self.content["lost"]}

    def has(self, case: dict) -> bool:
        """Whether a case is measured already."""
        wanted = json.loads(json.dumps(case))
        return any(json.loads(json.dumps(result["case"])) == wanted for result in self.results)

    def may_start(self, label: str) -> bool:
        """False, and the case is noted as left out, where the time is used up."""
        elapsed = self.seconds_before + time.perf_counter() - self.begin
        if self.limit is None or elapsed < self.limit:
            return True
        self.content["left_out"].append(label)
        return False

    def save(self) -> None:
        """Write what there is, if there is a file to write."""
        self.content["seconds"] = round(self.seconds_before + time.perf_counter() - self.begin, 1)
        if self.output is not None:
            write_json(self.output, self.content)

    def goes_on(self, lost: Exception) -> None:
        """Note the provider that lost the GPU and go on in a new process; raises `lost` where none can help."""
        again = lost.provider in self.lost()
        self.content["lost"].append({"provider": lost.provider, "failure": lost.reason})
        self.save()
        if self.output is None or again:
            raise lost
        print(f"the GPU is lost: {lost}; going on in a new process", flush=True)
        arguments = [argument for argument in sys.orig_argv[1:] if argument != "--resume"]
        os.execv(sys.executable, [sys.executable, *arguments, "--resume"])


def refuse_other_machine(path: Path, before: dict, now: dict) -> None:
    """End the program where results to go on with are those of another machine, or of other packages."""
    differ = [
        f"{name}: {before.get(name)} there, {value} here"
        for name, value in json.loads(json.dumps(now)).items()
        if name not in ("command", "finished") and before.get(name) != value
    ]
    if differ:
        raise SystemExit(f"--resume: {path} was measured elsewhere; {'; '.join(differ)}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run, the same for all benchmarks."""
    parser.add_argument(
        "--seconds-total",
        type=float,
        metavar="S",
        help="start no new case after so many seconds, and say which are left out",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the cases that the output file lacks")


def read_json(path: Path) -> dict:
    """A file of results."""
    return json.loads(path.read_text(encoding="utf-8"))


def select(results: list[dict], **wanted: str) -> list[dict]:
    """The results whose case has all the wanted values."""
    return [result for result in results if all(result["case"][name] == value for name, value in wanted.items())]


def find(results: list[dict], **wanted: str) -> dict | None:
    """The first result whose case has all the wanted values, or None."""
    return next(iter(select(results, **wanted)), None)


def ratio(result: dict | None, provider: str, base: str, column: str = "ms") -> float | None:
    """How many times faster `provider` is than `base`, by medians; None unless both are right and timed."""
    rows = [result["providers"].get(name) if result else None for name in (base, provider)]
    if not all(row and row["correct"] and row.get(column) for row in rows):
        return None
    return rows[0][column]["p50"] / rows[1][column]["p50"]


def any_late(rows: Iterable[dict], unsaid: float = 0.0) -> bool:
    """Whether waits for the host are part of a time of the GPU in these rows; `unsaid`: the share in older files, which
    do not say."""
    return any(row["ms"].get("late", unsaid) > 0 for row in rows if row.get("ms"))


def below_floor(content: dict) -> list[str]:
    """The right results of a CPU whose median is shorter than the least time possible: then the floor is wrong."""
    lines = []
    for result in content["results"] if content["rates"]["threads"] else ():
        least = result["floor"]["floor"]
        for name, row in result["providers"].items():
            if row["correct"] and row.get("ms") and row["ms"]["p50"] < least:
                lines.append(f"{result['title']} {result['label']}: {name} takes {row['ms']['p50']:.4g} ms, "
                             f"less than its floor of {least:.4g} ms")  # fmt: skip
    return lines
