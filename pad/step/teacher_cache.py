"""A cache of a frozen teacher's outputs by text, in memory or in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from pad.digests import digest_of_tensors
from pad.errors import UserError, reason
from pad.step.teacher_shards import Entry, Shards


class Key(NamedTuple):
    """What the outputs for a text depend on, besides the teacher: its tokens, those that count, the precision."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    autocast: str


class TeacherCache(Protocol):
    def get(self, key: Key, device) -> Entry | None: ...

    def put(self, key: Key, embeddings: torch.Tensor, prior: torch.Tensor | None) -> None: ...

    def write(self) -> None: ...


class _Memory(dict):
    def get(self, key, device):
        entry = super().get(key)
        return None if entry is None else tuple(None if tensor is None else tensor.to(device) for tensor in entry)

    def put(self, key, embeddings, prior):
        # A GPU has no room for those of a corpus.
        self[key] = tuple(None if tensor is None else tensor.detach().cpu() for tensor in (embeddings, prior))

    def write(self):
        """There is nothing to write."""


class _Folder:
    """Shards in a folder for each teacher, named by a digest of it; entries are named by a digest of it and the key."""

    def __init__(self, folder: Path, teacher: str, with_prior: bool):
        self.teacher = teacher
        self._shards = Shards(folder / hashlib.sha256(teacher.encode()).hexdigest()[:16], with_prior)

    def get(self, key, device):
        entry = self._shards.get(name_of(self.teacher, key), len(key.ids))
        return None if entry is None else tuple(None if tensor is None else tensor.to(device) for tensor in entry)

    def put(self, key, embeddings, prior):
        entry = tuple(None if tensor is None else tensor.detach().cpu() for tensor in (embeddings, prior))
        self._shards.put(name_of(self.teacher, key), entry)

    def write(self):
        self._shards.write()


def name_of(teacher: str, key: Key) -> bytes:
    """The name of an entry in a folder: a digest of the teacher and the key."""
    return hashlib.sha256(f"{teacher} {key}".encode()).digest()


def open_cache(where: str, model, settings: str, with_prior: bool) -> TeacherCache | None:
    """The cache that `where` names: "memory", a folder, or "" for none; raises UserError."""
    if not where:
        return None
    if where == "memory":
        return _Memory()
    folder = Path(where)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"teacher_cache: cannot make the folder {folder}: {reason(error)}") from error
    try:
        return _Folder(folder, f"{_fingerprint(model)} {settings}", with_prior)
    except OSError as error:
        raise UserError(f"teacher_cache: cannot read {folder}: {reason(error)}; expected a folder") from error


def _fingerprint(model) -> str:
    """A digest of the configuration and of all weights."""
    config = {name: value for name, value in model.config.to_dict().items()
              if name not in ("_name_or_path", "transformers_version")}  # fmt: skip
    said = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{said} {digest_of_tensors(model.state_dict())}".encode()).hexdigest()
