"""The files from which an evaluation resumes: each ends in the SHA-256 of what comes before."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch

from pad.errors import UserError, reason
from pad.files import whole_file
from pad.progress import say

_DIGEST = hashlib.sha256().digest_size


def save_state(state: dict, path: Path) -> None:
    """Write tensors, numbers and strings to a file, whole; raises OSError that names it."""
    content = io.BytesIO()
    torch.save(state, content)
    try:
        with whole_file(path) as file:
            file.write(content.getbuffer())
            file.write(hashlib.sha256(content.getbuffer()).digest())
    except OSError as error:
        raise OSError(f"cannot write {path}: {reason(error)}") from error


def load_state(path: Path, device: torch.device | str = "cpu") -> dict | None:
    """What `save_state` wrote; None if there is no file, or one that is damaged, which is said.

    Raises UserError for a folder in its place.
    """
    if path.is_dir():
        raise UserError(f"output: {path} is a folder; expected a file that `pad evaluate` wrote, or nothing there")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        content = b""
    content, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        say(f"resume: {path} is not as it was saved; what it held is computed again")
        return None
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
