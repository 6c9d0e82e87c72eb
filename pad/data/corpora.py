"""LibriSpeech and Libri-Light's limited-supervision data, in the layout of torchaudio.datasets.

torchaudio is used only to download what is not on disk.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from pad.data.entry import Entry
from pad.data.folders import find_transcripts
from pad.data.report import Report
from pad.errors import UserError

_SAMPLING_RATE = 16000
_LIBRISPEECH = (
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip
_LIBRILIGHT = {"10min": ("1h/0",), "1h": ("1h",), "10h": ("1h", "9h")}


def _fetch(corpus: str, folder: Path, **options) -> None:
    try:
        datasets = importlib.import_module("torchaudio.datasets")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"data: torchaudio, which fetches {corpus}, cannot be imported: {error}; expected a torchaudio "
            f"that fits this torch, or the corpus unpacked in {folder}, which is read without torchaudio"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        getattr(datasets, corpus)(folder, download=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"data: torchaudio could not fetch {corpus} to {folder}: {error}") from error


def _present(places: list[Path], corpus: str, folder: Path, download: bool, **options) -> Path:
    """The first of the places that is a folder; the corpus is downloaded if there is none."""
    for attempt in range(2):
        for place in places:
            if place.is_dir():
                return place
        if not download or attempt:
            break
        _fetch(corpus, folder, **options)
    hint = "" if download else "; --download fetches it"
    raise UserError(f"data: {places[0]} is not a folder, expected {corpus} there{hint}")


def _entries(folder: Path, report: Report) -> list[Entry]:
    return [replace(entry, sampling_rate=_SAMPLING_RATE) for entry in find_transcripts(folder, report)]


def librispeech(splits: str, folder: Path, report: Report, download: bool = False) -> list[Entry]:
    """The entries of splits, separated by commas, below `folder` or its `LibriSpeech`."""
    entries = []
    for split in splits.split(","):
        places = [folder / "LibriSpeech" / split, folder / split]
        if not download and split not in _LIBRISPEECH and not any(place.is_dir() for place in places):
            raise UserError(f"data: librispeech:{split} is unknown, expected splits of {', '.join(_LIBRISPEECH)}")
        place = _present(places, "LIBRISPEECH", folder, download, url=split)
        entries += _entries(place, report)
    return entries


def librilight(subset: str, folder: Path, report: Report, download: bool = False) -> list[Entry]:
    """The entries of the subset 10min, 1h or 10h below `folder` or its `librispeech_finetuning`."""
    if subset not in _LIBRILIGHT:
        raise UserError(
            f"data: librilight:{subset} is unknown, expected librilight: with one of {', '.join(_LIBRILIGHT)}"
        )
    parts = _LIBRILIGHT[subset]
    places = [folder / "librispeech_finetuning" / parts[0], folder / parts[0]]
    first = _present(places, "LibriLightLimited", folder, download, subset=subset)
    root = first.parents[parts[0].count("/")]
    for part in parts:
        if not (root / part).is_dir():
            raise UserError(f"data: {root / part} is not a folder, expected librilight:{subset} there")
    return [entry for part in parts for entry in _entries(root / part, report)]
