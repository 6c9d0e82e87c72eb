"""A folder of transcribed speech: finds the transcripts, pairs them with audio files, reads the audio.

Four layouts are read; if a folder holds transcript lists (the first three), these alone say what belongs to
the data, otherwise every audio file needs a transcript of its own beside it:

- `transcripts.tsv` in the folder: audio path (relative to the file), a tab, the transcript;
- LibriSpeech, `*.trans.txt` anywhere below: utterance id, a space, the transcript; audio `id.flac` beside it;
- Sphinx, `transcription` or `*.transcription` anywhere below: `<s> the transcript </s> (id)`;
- `name.txt` or `name.lab` beside `name.wav`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from pad.errors import UserError

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True)
class Utterance:
    """One audio file and what is said in it; duration in seconds."""

    audio: Path
    transcript: str
    duration: float


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _audio_of(stem: Path, where: str) -> Path:
    for suffix in AUDIO_SUFFIXES:
        candidate = stem.with_name(stem.name + suffix)
        if candidate.is_file():
            return candidate
    raise UserError(f"{where}: no audio file {stem} with one of the endings {', '.join(AUDIO_SUFFIXES)}")


def _read_table(path: Path) -> Iterator[tuple[Path, str, str]]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        name, tab, transcript = line.partition("\t")
        if not tab and not name.lower().endswith(AUDIO_SUFFIXES):
            raise UserError(f"{where}: expected an audio path, a tab and a transcript, got {line!r}")
        audio = path.parent / name.strip()
        if not audio.is_file():
            raise UserError(f"{where}: the audio file {audio} does not exist")
        yield audio, transcript.strip(), where


def _read_librispeech(path: Path) -> Iterator[tuple[Path, str, str]]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        identifier, _, transcript = line.partition(" ")
        yield _audio_of(path.parent / identifier, where), transcript.strip(), where


def _read_sphinx(path: Path) -> Iterator[tuple[Path, str, str]]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        match = re.fullmatch(r"(.*)\(([^()\s]+)\)", line)
        if match is None:
            raise UserError(
                f"{where}: expected a transcript and the utterance's id in brackets, got {line!r}"
            )
        transcript = re.sub(r"</?s>", " ", match.group(1))
        yield _audio_of(path.parent / match.group(2), where), transcript.strip(), where


def _read_siblings(folder: Path) -> Iterator[tuple[Path, str, str]]:
    for audio in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES):
        beside = [path for path in (audio.with_suffix(".txt"), audio.with_suffix(".lab")) if path.is_file()]
        if not beside:
            raise UserError(
                f"{audio}: no transcript; looked for {audio.stem}.txt and {audio.stem}.lab beside it"
            )
        yield audio, " ".join(line for _, line in _lines(beside[0])), str(beside[0])


def find_transcripts(folder: Path) -> list[tuple[Path, str, str]]:
    """(audio file, transcript, where the transcript stands) of a folder in one of the layouts above."""
    readers: list[tuple[Callable[[Path], Iterable], list[Path]]] = [
        (_read_table, [path for path in [folder / "transcripts.tsv"] if path.is_file()]),
        (_read_librispeech, sorted(folder.rglob("*.trans.txt"))),
        (_read_sphinx, sorted([*folder.rglob("*.transcription"), *folder.rglob("transcription")])),
    ]
    entries = [entry for reader, lists in readers for path in lists for entry in reader(path)]
    return entries or list(_read_siblings(folder))


def load_utterances(
    folder: str | Path,
    min_samples: int = 1,
    sampling_rate: int = 16000,
    max_seconds: float | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> list[Utterance]:
    """The utterances of a folder, each checked: audio readable, long enough, transcript not empty.

    min_samples: the shortest audio the student takes, in samples at sampling_rate (Hz); max_seconds: longer
    utterances are left out. Raises UserError that names the file, and the line where there is one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"data: {folder} is not a folder")
    utterances = []
    for audio, transcript, where in progress(find_transcripts(folder)):
        if not transcript:
            raise UserError(f"{where}: empty transcript for {audio.name}")
        try:
            header = soundfile.info(audio)
        except (soundfile.SoundFileError, OSError) as error:
            raise UserError(f"{audio}: not a readable audio file: {error}") from error
        if header.frames <= 0:
            raise UserError(f"{audio}: the audio file is empty")
        if header.duration * sampling_rate < min_samples:
            raise UserError(
                f"{audio}: {header.duration:.3f} s of audio is shorter than one frame of the student, "
                f"{min_samples / sampling_rate:.3f} s"
            )
        if max_seconds is None or header.duration <= max_seconds:
            utterances.append(Utterance(audio, transcript, header.duration))
    if not utterances:
        limit = "" if max_seconds is None else f" of at most {max_seconds:g} s"
        raise UserError(f"data: no transcribed audio{limit} found in {folder}")
    return utterances


def read_audio(path: str | Path, sampling_rate: int = 16000) -> np.ndarray:
    """The samples of an audio file as float32 in [-1, 1], channels averaged, at sampling_rate (Hz)."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: not a readable audio file: {error}") from error
    if len(samples) == 0:
        raise UserError(f"{path}: the audio file is empty")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise UserError(f"{path}: the audio holds NaN or infinite samples")
    return mono if rate == sampling_rate else soxr.resample(mono, rate, sampling_rate)
