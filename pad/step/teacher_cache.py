"""A cache of a frozen teacher's outputs by text, in memory or in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pad.errors import UserError
from pad.files import whole_file

Entry = tuple[torch.Tensor, torch.Tensor | None]  # embeddings [N, D], prior [N]


class Key(NamedTuple):
    """What the outputs for a text depend on, besides the teacher: its tokens, those that count, the precision."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    autocast: str


class TeacherCache(Protocol):
    def get(self, key: Key, device) -> Entry | None: ...

    def put(self, key: Key, embeddings: torch.Tensor, prior: torch.Tensor | None) -> None: ...


class _Memory(dict):
    def get(self, key, device):
        entry = super().get(key)
        return None if entry is None else tuple(None if tensor is None else tensor.to(device) for tensor in entry)

    def put(self, key, embeddings, prior):
        self[key] = (embeddings, prior)


class _Folder:
    """One safetensors file per text, named by a digest of the teacher and the key; processes may share it.

    A file says which key it is of and what its tensors hash to: one that is damaged, or of another teacher, width or
    text, counts as missing, and is computed and written again.
    """

    def __init__(self, folder: Path, teacher: str, with_prior: bool):
        self.folder, self.teacher, self.with_prior = folder, teacher, with_prior

    def _name(self, key: Key) -> str:
        return hashlib.sha256(f"{self.teacher} {key}".encode()).hexdigest()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def get(self, key, device):
        name = self._name(key)
        try:
            with safe_open(self._path(name), framework="pt") as file:
                said = file.metadata() or {}
                entry = {tensor: file.get_tensor(tensor) for tensor in file.keys()}
        except (OSError, SafetensorError, ValueError):
            return None
        if said.get("key") != name or said.get("content") != _content(entry):
            return None
        if ("prior" in entry) != self.with_prior or any(len(tensor) != len(key.ids) for tensor in entry.values()):
            return None
        return entry["embeddings"].to(device), entry["prior"].to(device) if self.with_prior else None

    def put(self, key, embeddings, prior):
        name = self._name(key)
        entry = {"embeddings": embeddings} if prior is None else {"embeddings": embeddings, "prior": prior}
        entry = {tensor: value.contiguous().cpu() for tensor, value in entry.items()}
        try:
            with whole_file(self._path(name), cache=True) as file:
                file.write(save(entry, {"key": name, "content": _content(entry)}))
        except OSError as error:
            raise OSError(f"teacher_cache: cannot write to {self.folder}: {error.strerror}") from error


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
        raise UserError(f"teacher_cache: cannot make the folder {folder}: {error}") from error
    return _Folder(folder, f"{_fingerprint(model)} {settings}", with_prior)


def _fingerprint(model) -> str:
    """A digest of the configuration and of all weights."""
    config = {name: value for name, value in model.config.to_dict().items()
              if name not in ("_name_or_path", "transformers_version")}  # fmt: skip
    said = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{said} {_content(model.state_dict())}".encode()).hexdigest()


def _content(tensors: dict[str, torch.Tensor]) -> str:
    """A digest of the names, shapes, dtypes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
