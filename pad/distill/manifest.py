"""The list of a checkpoint's files with their sizes and digests, written last: by it a checkpoint is whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pad.errors import UserError, reason
from pad.files import sync_folder, write_json

MANIFEST = "manifest.json"
_BLOCK = 1 << 20  # bytes


def seal(folder: Path) -> None:
    """Put the files of a checkpoint on disk, and then their list."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
    sync_folder(folder)
    write_json(folder / MANIFEST, {"files": files})
    sync_folder(folder.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is as it was saved.

    Raises UserError where the system does not let it be read: it may be whole.
    """
    try:
        return _damage(folder)
    except OSError as error:
        raise UserError(
            f"resume: cannot read {error.filename or folder}: {reason(error)}; make the checkpoint readable, "
            "or move it away to go on without it"
        ) from error


def _damage(folder: Path) -> str | None:
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        stated = {name: (entry["size"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} is damaged"
    for name, (size, digest) in stated.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if _digest(path) != digest:
                return f"{name} has changed since it was saved"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints below a folder with their steps, whole or not, the oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()  # glob would say nothing of a folder that cannot be read
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in paths)
    return sorted((int(match[1]), path) for match, path in found if match)


def sealed(folder: Path) -> list[Path]:
    """The checkpoints below a folder that were saved to their end, whatever has become of them, the oldest first."""
    return [path for _, path in numbered(folder) if (path / MANIFEST).exists()]


def rotate(folder: Path, keep: int, step: int, *, remove_later: bool) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, and those that were not saved to their end.

    remove_later: also remove those of later steps, which a run that goes on from an earlier one does not trust.
    """
    kept = 0
    for number, path in reversed(numbered(folder)):
        later = number > step
        if (path / MANIFEST).is_file() and (not remove_later if later else kept < keep):
            kept += not later
            continue
        (path / MANIFEST).unlink(missing_ok=True)  # first: what a kill leaves of it is not whole
        shutil.rmtree(path, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield path


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
