"""A teacher's outputs on disk: many texts to a file, for any number of processes that read and write at once."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import warnings
import weakref
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pad.digests import add_tensor
from pad.errors import reason
from pad.files import whole_file

Entry = tuple[torch.Tensor, torch.Tensor | None]  # embeddings [N, D], prior [N]

SHARD_BYTES = 64 * 2**20
_ABANDONED = 24 * 3600  # seconds after which no process writes to an unfinished file any more


class _Shard(NamedTuple):
    """A file: the rows of its texts one after another. Its tensors are mapped, and read from disk where they are used.

    keys [n] int64: the first bytes of each name; ends [n] int64: where each text's rows end; digests [n, 32] uint8:
    what `digest` gives for each; embeddings [rows, D]; prior [rows] or None.
    """

    keys: torch.Tensor
    ends: torch.Tensor
    digests: torch.Tensor
    embeddings: torch.Tensor
    prior: torch.Tensor | None

    def entry(self, row: int) -> tuple[Entry, bytes]:
        """The outputs for a text and their digest, as the file says."""
        begin, end = (int(self.ends[row - 1]) if row else 0), int(self.ends[row])
        prior = None if self.prior is None else self.prior[begin:end]
        return (self.embeddings[begin:end], prior), self.digests[row].numpy().tobytes()


class Shards:
    """Entries by name (32 bytes, a digest of all that an entry depends on) in the safetensors files of a folder.

    Each file is written once, whole and under a name of its own, and nobody changes it afterwards. So processes share
    the folder without locks, on one machine or on several, and a killed process leaves it as it was: at most its last
    `SHARD_BYTES` of entries are computed again. An entry is found by others once its file is written. What is damaged
    counts as missing, with a warning.

    with_prior: whether entries have a prior; others count as damaged.
    """

    def __init__(self, folder: Path, with_prior: bool):
        self.folder, self.with_prior = folder, with_prior
        self._shards: list[_Shard] = []
        self._starts: list[int] = []  # the number of each shard's first entry
        self._keys, self._entries = np.empty(0, np.int64), np.empty(0, np.int64)  # by key: the numbers of the entries
        self._known: set[str] = set()  # files
        self._changed: int | None = None  # when the folder last was, as far as it was read
        self._warned = False
        self._unwritten = _Unwritten(folder)
        weakref.finalize(self, self._unwritten.write)
        _remove_abandoned(folder)
        self._read_folder()

    def __len__(self) -> int:
        """Entries in the files that were read so far."""
        return len(self._keys)

    def get(self, name: bytes, length: int) -> Entry | None:
        """The entry of this name with `length` tokens, on the CPU; None if there is none."""
        entry = self._unwritten.entries.get(name)
        if entry is not None:
            return entry
        entry = self._find(name, length)
        # Once: others may write faster than this process reads.
        if entry is None and self._read_folder():
            entry = self._find(name, length)
        if entry is not None:
            return entry
        if self._numbers(name) and not self._warned:
            self._warned = True
            warnings.warn(f"teacher_cache: damaged entries in {self.folder} are computed again", stacklevel=2)
        return None

    def _find(self, name: bytes, length: int) -> Entry | None:
        """The entry in the files that were read so far, if it is whole."""
        for number in self._numbers(name):
            place = bisect_right(self._starts, number) - 1
            entry, expected = self._shards[place].entry(number - self._starts[place])
            if len(entry[0]) == length and digest(name, entry) == expected:
                return entry
        return None

    def put(self, name: bytes, entry: Entry) -> None:
        """Keep an entry; it is written with others, at the latest by `write` or when the process ends."""
        self._unwritten.add(name, entry)
        if self._unwritten.bytes >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is kept; raises OSError where that cannot be done, and keeps it no longer."""
        self._changed = None
        self._unwritten.write()

    def _numbers(self, name: bytes) -> list[int]:
        """Entries that may have this name: none, one, or several that processes wrote independently."""
        key = _key(name)
        first = int(np.searchsorted(self._keys, key))
        last = first
        while last < len(self._keys) and self._keys[last] == key:
            last += 1
        return self._entries[first:last].tolist()

    def _read_folder(self) -> bool:
        """Take in the files that are new in the folder; whether there were any."""
        try:
            changed = os.stat(self.folder).st_mtime_ns
            if changed == self._changed:
                return False
            names = [name for name in os.listdir(self.folder) if name.endswith(".safetensors")]
        except FileNotFoundError:
            return False
        self._changed = changed
        fresh = sorted(name for name in names if name not in self._known and not name.startswith("."))
        before = len(self._shards)
        for name in fresh:
            try:
                shard = self._open(self.folder / name)
            except (OSError, SafetensorError, ValueError) as error:
                reason = f"is damaged and not used ({' '.join(str(error).split())}); it may be removed"
                warnings.warn(f"teacher_cache: {self.folder / name} {reason}", stacklevel=2)
            else:
                self._starts.append(self._starts[-1] + len(self._shards[-1].keys) if self._shards else 0)
                self._shards.append(shard)
            self._known.add(name)
        if len(self._shards) == before:
            return False
        keys = np.concatenate([shard.keys.numpy() for shard in self._shards])
        self._entries = keys.argsort(kind="stable")
        self._keys = keys[self._entries]
        return True

    def _open(self, path: Path) -> _Shard:
        """A file's tensors; raises an error that says why they are no shard."""
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
        dimensions = {name: found[name].dim() for name in sorted(found)}
        if dimensions != {"digests": 2, "embeddings": 2, "ends": 1, "keys": 1} | (
            {"prior": 1} if self.with_prior else {}
        ):
            raise ValueError(f"got tensors of these dimensions: {dimensions}")
        shard = _Shard(**{"prior": None, **found})
        if {shard.keys.dtype, shard.ends.dtype} != {torch.int64}:
            raise ValueError("its index is not int64")
        rows = [len(tensor) for tensor in (shard.embeddings, shard.prior) if tensor is not None]
        if {len(shard.ends), len(shard.digests)} != {len(shard.keys)} or {*shard.ends[-1:].tolist()} != {*rows}:
            raise ValueError("its tensors do not fit together")
        return shard


class _Unwritten:
    """The entries that this process has not written yet; those of the process that it was forked from are not its."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._begin()

    def _begin(self) -> None:
        self.process = os.getpid()
        self.entries: dict[bytes, Entry] = {}
        self.bytes = 0

    def add(self, name: bytes, entry: Entry) -> None:
        if self.process != os.getpid():
            self._begin()
        self.entries[name] = entry
        self.bytes += sum(tensor.nbytes for tensor in entry if tensor is not None)

    def write(self) -> None:
        """A file for each kind of entry: the tensors of a file have one dtype and width."""
        entries, mine = self.entries, self.process == os.getpid()
        self._begin()
        kinds: dict[tuple, dict[bytes, Entry]] = {}
        for name, entry in entries.items() if mine else ():
            kind = tuple(None if tensor is None else (tensor.dtype, tensor.shape[1:]) for tensor in entry)
            kinds.setdefault(kind, {})[name] = entry
        try:
            for of_a_kind in kinds.values():
                with whole_file(self.folder / f"{secrets.token_hex(8)}.safetensors") as file:
                    file.write(save(_tensors(of_a_kind)))
        except OSError as error:
            raise OSError(f"teacher_cache: cannot write to {self.folder}: {reason(error)}") from error


def _tensors(entries: dict[bytes, Entry]) -> dict[str, torch.Tensor]:
    """What the file of these entries holds."""
    embeddings, priors = zip(*entries.values())
    digests = b"".join(digest(name, entry) for name, entry in entries.items())
    tensors = {
        "keys": torch.tensor([_key(name) for name in entries]),
        "ends": torch.tensor([len(tensor) for tensor in embeddings]).cumsum(0),
        "digests": torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, 32),
        "embeddings": torch.cat(embeddings),
    }
    return tensors if priors[0] is None else {**tensors, "prior": torch.cat(priors)}


def _key(name: bytes) -> int:
    return int.from_bytes(name[:8], "little", signed=True)


def digest(name: bytes, entry: Entry) -> bytes:
    """A digest of an entry's name and of its tensors' dtypes, shapes and bytes."""
    found = hashlib.sha256(name)
    for tensor in entry:
        if tensor is not None:
            add_tensor(found, tensor)
    return found.digest()


def _remove_abandoned(folder: Path) -> None:
    """Remove the files that killed processes did not finish."""
    for path in folder.glob(".*.safetensors.partial"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
        except OSError:  # another process was first, or the folder may only be read
            continue
