"""The files from which an evaluation resumes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pad.errors import UserError
from pad.files import whole_file


def save_state(state: dict, path: Path) -> None:
    """Write tensors, numbers and strings to a file, whole; raises OSError that names it."""
    try:
        with whole_file(path) as file:  # given a path, torch hides why the system refused
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot write {path}: {error}") from error


def load_state(path: Path, device: torch.device | str = "cpu") -> dict:
    """What `save_state` wrote; raises UserError for a file that it did not."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(f"output: {path} is not a saved state: {error}; remove it to start again") from error


def load_json(path: Path):
    """What a JSON file holds; raises UserError if it holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"output: {path} is not readable as JSON: {error}") from error
