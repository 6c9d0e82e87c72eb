"""A cache of a frozen teacher's outputs by text, in memory or in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pad.errors import UserError
from pad.files import whole_file

Entry = tuple[torch.Tensor, torch.Tensor | None]  # embeddings [N, D], prior [N]


class TeacherCache(Protocol):
    def get(self, key: tuple[int, ...], device) -> Entry | None: ...

    def put(self, key: tuple[int, ...], embeddings: torch.Tensor, prior: torch.Tensor | None) -> None: ...


class _Memory(dict):
    def get(self, key, device):
        return super().get(key)

    def put(self, key, embeddings, prior):
        self[key] = (embeddings, prior)


class _Folder:
    """One safetensors file per text, named by a digest of the teacher and the token ids; processes may share it."""

    def __init__(self, folder: Path, teacher: str):
        self.folder, self.teacher = folder, teacher

    def _path(self, key) -> Path:
        name = hashlib.sha256(f"{self.teacher} {key}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def get(self, key, device):
        path = self._path(key)
        try:
            entry = load_file(path, device=str(device))
        except (FileNotFoundError, SafetensorError):
            return None  # missing or incomplete: computed again
        return entry["embeddings"], entry.get("prior")

    def put(self, key, embeddings, prior):
        path = self._path(key)
        entry = {"embeddings": embeddings} if prior is None else {"embeddings": embeddings, "prior": prior}
        try:
            with whole_file(path, cache=True) as file:
                file.write(save({name: tensor.contiguous().cpu() for name, tensor in entry.items()}))
        except OSError as error:
            raise OSError(f"teacher_cache: cannot write to {self.folder}: {error.strerror}") from error


def open_cache(where: str, model, settings: str) -> TeacherCache | None:
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
    return _Folder(folder, f"{_fingerprint(model)} {settings}")


def _fingerprint(model) -> str:
    """A digest of the architecture and a sample of the weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        values = tensor.detach().flatten()
        few = values[:: max(1, len(values) // 64)].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + few.tobytes())
    return digest.hexdigest()
