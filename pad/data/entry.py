"""What the readers return (an entry, as listed) and what training takes (an utterance, checked)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class AudioSource(Protocol):
    """Audio that is not a file of its own; its `str` names it in messages."""

    def read(self) -> bytes:
        """The content of an audio file: its header and samples."""


@dataclass(frozen=True)
class Entry:
    """Audio and its transcript as listed at `where` (file:line), not yet checked.

    sampling_rate (Hz) and duration (s): what the list states about the audio, None if nothing.
    """

    audio: Path | AudioSource
    transcript: str
    where: str
    sampling_rate: float | None = None
    duration: float | None = None


@dataclass(frozen=True)
class Utterance:
    """Audio and its transcript; duration in seconds; listed at `where` (file:line), "" if nowhere.

    size: of the audio file in bytes, None if it is not a file of its own.
    """

    audio: Path | AudioSource
    transcript: str
    duration: float
    where: str = ""
    size: int | None = None


def listed(message: str, item: Entry | Utterance) -> str:
    """A message on the audio of an item, and where that is listed unless it is the audio itself."""
    return message if item.where in ("", str(item.audio)) else f"{message} (listed at {item.where})"
