"""What a run was made with, by content: another model or corpus may lie under the same name when it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from pad.errors import UserError
from pad.files import write_json

DIGESTS_FILE = "digests.json"


def add_tensor(digest, tensor: torch.Tensor) -> None:
    """Take the dtype, shape and bytes of a tensor on the CPU into a digest."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def digest_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """A digest of the names, shapes, dtypes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} ".encode())
        add_tensor(digest, tensor.detach().cpu())
    return digest.hexdigest()


def digest_of_items(items: Iterable) -> str:
    """A digest of what JSON can hold, or `str` can say."""
    return hashlib.sha256(json.dumps(list(items), default=str).encode()).hexdigest()


def save_digests(output: Path, digests: dict[str, str]) -> None:
    """Keep the digests of a run's models and corpora, by setting, in its folder."""
    write_json(output / DIGESTS_FILE, digests)


def check_digests(output: Path, digests: dict[str, str]) -> None:
    """Raise UserError where a run to be resumed had others."""
    path = output / DIGESTS_FILE
    if not path.is_file():
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"resume: {path} is not readable as JSON: {error}") from error
    changed = [name for name, digest in digests.items() if before.get(name, digest) != digest]
    if changed:
        raise UserError(
            f"resume: {', '.join(changed)}: the content has changed since the run in {output} began; "
            "expected the same, or a new output folder"
        )
