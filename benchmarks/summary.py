"""The table that tests/on_gpu.sh ends with: `python -m benchmarks.summary STEPS.tsv RESULTS`.

A line of STEPS.tsv: a step's name, its seconds, how it ended. A step of tests that passed none has failed: they were
all skipped.
"""

import argparse
import statistics
from pathlib import Path

from rich.table import Table

from benchmarks import results, tables

FAILED, LEFT_OUT = 1, 3


def _read(path: Path) -> dict:
    return results.read_json(path) if path.is_file() else {}


def _ratios(content: dict, base: str, provider: str = "ours", **wanted: str) -> str:
    """How many times faster a provider is than another: median, lowest and highest of the cases."""
    found = [results.ratio(result, provider, base) for result in content.get("results", ())
             if wanted.items() <= result["case"].items()]  # fmt: skip
    found = [ratio for ratio in found if ratio is not None]
    if not found:
        return f"{base}: -"
    return f"{base}: {statistics.median(found):.2f}x ({min(found):.2f}-{max(found):.2f}, {len(found)} cases)"


def _counts(content: dict) -> str:
    """Cases measured, results of ours that are wrong or missing, and what there was no time for."""
    rows = [row for result in content.get("results", ()) for name, row in result["providers"].items()
            if name.startswith("ours") and not row.get("unavailable")]  # fmt: skip
    bad = sum(not row["correct"] for row in rows)
    unavailable = {name for result in content.get("results", ()) for name, row in result["providers"].items()
                   if row.get("unavailable")}  # fmt: skip
    text = f"{len(content.get('results', ()))} cases, {bad} of {len(rows)} results wrong"
    if unavailable:
        text += f", unavailable: {', '.join(sorted(unavailable))}"
    if content.get("left_out"):
        text += f", {len(content['left_out'])} cases left out"
    if content.get("lost"):
        text += f", GPU lost {len(content['lost'])} x"
    return text


def _losses(folder: Path) -> str:
    content = _read(folder / "align.json")
    pairs = [_ratios(content, base, dtype=dtype, direction="forward+backward") + f" {dtype}"
             for dtype in ("bfloat16", "float32") for base in ("eager", "eager-scaled")]  # fmt: skip
    return f"{_counts(content)}; ours faster than {'; '.join(pairs)}"


def _compiled(folder: Path) -> str:
    content = _read(folder / "compiled.json")
    rivals = ("torch.compile", "late-interaction-kernels", "flash-maxsim")
    return f"{_counts(content)}; ours faster than {'; '.join(_ratios(content, base) for base in rivals)}"


def _significance(folder: Path) -> str:
    content = _read(folder / "significance.json")
    pairs = [_ratios(content, base) for base in ("eager", "sdpa forward")]
    return f"{_counts(content)}; ours faster than {'; '.join(pairs)}"


def _step(folder: Path) -> str:
    parts = []
    for result in _read(folder / "step.json").get("results", ()):
        times = {name: tables.median(row, "wall_ms") for name, row in result["variants"].items()}
        parts.append(f"{result['label']}: " + ", ".join(f"{name} {value} ms" for name, value in times.items()))
        parts[-1] += "" if result["correct"] else " (losses differ)"
    return "; ".join(parts) or "no case"


FIGURES = {"losses": _losses, "compiled": _compiled, "significance": _significance, "step": _step}


def read_steps(path: Path, folder: Path) -> list[tuple[str, str, str, str]]:
    """Name, seconds, how it ended and key figures of each step that was begun or left out."""
    tests = _read(folder / "tests.json")
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        name, seconds, ended = line.split("\t")
        figures = ""
        if name in FIGURES and ended != "left out":
            figures = FIGURES[name](folder)
        elif name in tests:
            found = tests[name]
            figures = f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped"
            if found["reasons"]:
                figures += " (" + "; ".join(found["reasons"]) + ")"
            if ended == "ok" and not found["passed"]:
                ended = "failed (no test ran)"
        rows.append((name, seconds, ended, figures))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit code of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path)
    parser.add_argument("results", type=Path)
    options = parser.parse_args(arguments)
    rows = read_steps(options.steps, options.results)
    machine = next((content["machine"] for file in ("align", "significance", "step", "compiled")
                    if (content := _read(options.results / f"{file}.json"))), {})  # fmt: skip
    versions = machine.get("versions", {})
    table = Table(title=f"{machine.get('gpu', 'no results')}; torch {versions.get('torch')}, triton "
                        f"{versions.get('triton')}")  # fmt: skip
    for column in ("step", "s", "ended", "key figures"):
        table.add_column(column, justify="right" if column == "s" else "left")
    for row in rows:
        table.add_row(*row)
    tables.make_console().print(table, markup=False)
    ends = [ended for _, _, ended, _ in rows]
    if not rows or any(ended not in ("ok", "left out") for ended in ends):
        return FAILED
    return LEFT_OUT if "left out" in ends else 0


if __name__ == "__main__":
    raise SystemExit(main())
