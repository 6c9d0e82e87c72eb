"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pad.errors import UserError
from pad.settings import write_whole


def save_state(state: dict, path: Path) -> None:
    """Write tensors, numbers and strings to a new file, then give it its name; raises OSError if it cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:  # given a path, torch hides why the system refused
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    partial.replace(path)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict:
    """What `save_state` wrote; raises UserError for a file that it did not."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(f"output: {path} is not a saved state: {error}; remove it to start afresh") from error


def save_json(record, path: Path) -> None:
    """Write JSON to a new file, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def load_json(path: Path):
    """What a JSON file holds; raises UserError if it holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"output: {path} is not readable as JSON: {error}") from error
