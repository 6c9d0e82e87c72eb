"""The JSON files of results: written whole or not at all, and looked up by case."""

import json
import os
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


def read_json(path: Path) -> dict:
    """A file of results."""
    return json.loads(path.read_text(encoding="utf-8"))


def find(results: list[dict], **wanted: str) -> dict | None:
    """The first result whose case has all the wanted values, or None."""
    for result in results:
        if all(result["case"][name] == value for name, value in wanted.items()):
            return result
    return None


def ratio(result: dict | None, provider: str, base: str, column: str = "ms") -> float | None:
    """How many times faster `provider` is than `base`, by medians; None unless both are right and timed."""
    rows = [result["providers"].get(name) if result else None for name in (base, provider)]
    if not all(row and row["correct"] and row.get(column) for row in rows):
        return None
    return rows[0][column]["p50"] / rows[1][column]["p50"]
