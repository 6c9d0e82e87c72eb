"""Datasets of the library `datasets`. Audio is decoded by `pad.data.audio`, without torchcodec."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad.data.entry import Entry
from pad.data.manifests import AUDIO_NAMES, TEXT_NAMES
from pad.data.report import BadSample, Report
from pad.errors import UserError, shown

# A split may hold a colon in brackets: train[:10%].
_NAME = re.compile(r"(?P<name>[^:]+)(:(?P<config>[^:\[\]]+))?:(?P<split>[^:\[\]]+(\[[^\]]*\][^:\[\]]*)*)")
_FAULTS = (OSError, ValueError, RuntimeError, ImportError, KeyError)


@dataclass(frozen=True)
class RowAudio:
    """The audio of one row of a dataset, read on access."""

    dataset: Any = field(repr=False)
    column: str
    row: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} row {self.row}"

    def read(self) -> bytes:
        """The content of the audio file; raises BadSample if the row holds none."""
        value = self.dataset[self.row][self.column]
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
        if content is not None:
            return content
        if not path:
            raise BadSample(f"{self}: the column {self.column!r} is empty", "missing file")
        if not Path(path).is_file():
            raise BadSample(f"{self}: the audio file {path} does not exist", "missing file")
        return Path(path).read_bytes()


def _library():
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"data: a Hugging Face dataset needs the package datasets, which cannot be imported: {error}"
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_saved(folder: Path):
    """The dataset of a folder that `save_to_disk` wrote; raises UserError."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(str(path.parent) for path in folder.glob("*/state.json")))
        raise UserError(f"data: {folder} holds several splits; expected one of {splits}")
    try:
        return _library().load_from_disk(str(folder))
    except _FAULTS as error:
        raise UserError(f"data: cannot load the dataset in {folder}: {error}") from error


def load_named(name: str):
    """The dataset `NAME[:CONFIG]:SPLIT` of the hub, downloaded unless it is cached; raises UserError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"data: expected huggingface:NAME[:CONFIG]:SPLIT, got huggingface:{name}")
    library = _library()
    try:
        return library.load_dataset(match["name"], match["config"], split=match["split"])
    except _FAULTS as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()
        raise UserError(f"data: cannot load huggingface:{name}: {reason}") from error


def _columns(dataset, library, name: str) -> tuple[str, str]:
    kinds = dataset.features
    audio = [column for column, kind in kinds.items() if isinstance(kind, library.Audio)]
    audio = audio or [column for column in AUDIO_NAMES if column in kinds]
    text = [column for column in TEXT_NAMES if column in kinds]
    if not audio or not text:
        raise UserError(
            f"data: {name} has the columns {', '.join(kinds)}; expected one of audio ({', '.join(AUDIO_NAMES)}) and "
            f"one of text ({', '.join(TEXT_NAMES)})"
        )
    return audio[0], text[0]


def entries_of(dataset, report: Report, name: str = "dataset") -> list[Entry]:
    """The entries of a `datasets.Dataset`, in the order of its rows; raises UserError for anything else."""
    library = _library()
    if not isinstance(dataset, library.Dataset):
        what = type(dataset).__name__
        raise UserError(f"data: expected a path, a text or one split as a datasets.Dataset, got {what}")
    audio, text = _columns(dataset, library, name)
    transcripts = list(dataset.with_format(None)[text])
    content = dataset.with_format(None).select_columns([audio])
    if isinstance(dataset.features[audio], library.Audio):
        content = content.cast_column(audio, library.Audio(decode=False))
    entries = []
    for row, transcript in enumerate(transcripts):
        source = RowAudio(content, audio, row, name)
        if transcript is None or isinstance(transcript, str):
            entries.append(Entry(source, (transcript or "").strip(), str(source)))
        else:
            report.refuse(BadSample(f"{source}: expected a text as {text}, got {shown(transcript)}", "malformed line"))
    return entries
