"""Fluent Speech Commands and IEMOCAP as they are stored on disk, and what all corpus readers return."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from pad.data.audio import check_audio, read_audio
from pad.errors import UserError, reason

INTENT_SLOTS = ("action", "object", "location")
EMOTIONS = ("neutral", "happy", "sad", "angry")
_EMOTION_OF = {"neu": 0, "hap": 1, "exc": 1, "sad": 2, "ang": 3}
_EMOTIONS_LEFT_OUT = {"fru", "sur", "fea", "dis", "oth", "xxx"}
_TURN = re.compile(r"\[[^]]* - [^]]*\]\s+(\S+)\s+(\S+)\s+\[[^]]*\]")


@dataclass(frozen=True)
class Example:
    """An audio file with its label: class numbers, or characters and tags; where: file:line."""

    audio: Path
    label: tuple
    where: str


@dataclass(frozen=True)
class Splits:
    """The data for training, for choosing checkpoints and learning rates, and for the reported scores."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]


def read_lines(path: Path, role: str) -> list[str]:
    """The lines of a text file without their ends; raises UserError that names the argument and the file."""
    try:
        return path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{role}: cannot read {path}: {reason(error)}; expected the corpus in its original layout"
        ) from error


def _read_commands(path: Path) -> list[tuple[str, dict[str, str]]]:
    lines = csv.reader(read_lines(path, "ic"), strict=True)
    rows = []
    try:
        header = next(lines, [])
        missing = [name for name in ("path", *INTENT_SLOTS) if name not in header]
        if missing:
            raise UserError(f"{path}:1: the column {missing[0]} is missing, got {','.join(header)!r}")
        twice = [name for name in ("path", *INTENT_SLOTS) if header.count(name) > 1]
        if twice:
            raise UserError(f"{path}:1: the column {twice[0]} appears twice, got {','.join(header)!r}")
        for row in lines:
            where = f"{path}:{lines.line_num}"
            if len(row) != len(header):
                raise UserError(f"{where}: expected {len(header)} columns, got {len(row)}")
            rows.append((where, dict(zip(header, row))))
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: not readable as CSV: {error}") from error
    if not rows:
        raise UserError(f"{path}: no utterance listed")
    return rows


def fluent_speech_commands(folder: Path) -> tuple[Splits, tuple[int, ...]]:
    """The splits of FOLDER/data/{train,valid,test}_data.csv, whose paths are relative to FOLDER.

    Returns them with the number of values of action, object and location. A label has one number for each; values are
    numbered in the alphabetical order of the training split. Raises UserError for what is missing or malformed, and
    for a value that the training split does not have.
    """
    rows = {name: _read_commands(folder / "data" / f"{name}_data.csv") for name in ("train", "valid", "test")}
    values = {slot: sorted({row[slot] for _, row in rows["train"]}) for slot in INTENT_SLOTS}

    def example(where: str, row: dict[str, str]) -> Example:
        for slot in INTENT_SLOTS:
            if row[slot] not in values[slot]:
                known = ", ".join(values[slot])
                raise UserError(f"{where}: unknown {slot} {row[slot]!r}; the training split has {known}")
        label = tuple(values[slot].index(row[slot]) for slot in INTENT_SLOTS)
        return Example(folder / row["path"], label, where)

    splits = [[example(*item) for item in rows[name]] for name in ("train", "valid", "test")]
    return Splits(*splits), tuple(len(values[slot]) for slot in INTENT_SLOTS)


def _read_turns(path: Path, audio: Path) -> list[Example]:
    turns = []
    for number, line in enumerate(read_lines(path, "er"), start=1):
        if not line.startswith("["):
            continue
        where, match = f"{path}:{number}", _TURN.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{where}: expected [START - END] TURN EMOTION [V, A, D], got {line!r}")
        turn, emotion = match.groups()
        if emotion in _EMOTION_OF:
            turns.append(Example(audio / path.stem / f"{turn}.wav", (_EMOTION_OF[emotion],), where))
        elif emotion not in _EMOTIONS_LEFT_OUT:
            known = ", ".join(sorted({*_EMOTION_OF, *_EMOTIONS_LEFT_OUT}))
            raise UserError(f"{where}: unknown emotion {emotion!r}; expected one of {known}")
    return turns


def iemocap(folder: Path) -> list[list[Example]]:
    """The utterances of Session1 to Session5 with one of four emotions; a label is (number in EMOTIONS,).

    Excited counts as happy; every other emotion is left out. Raises UserError for what is missing or
    malformed.
    """
    sessions = []
    for number in range(1, 6):
        session = folder / f"Session{number}"
        evaluations = session / "dialog" / "EmoEvaluation"
        # Some copies hold hidden files that macOS left.
        files = sorted(path for path in evaluations.glob("*.txt") if not path.name.startswith("."))
        if not files:
            raise UserError(f"er: no evaluation (*.txt) in {evaluations}; expected Session1 to Session5")
        turns = [turn for path in files for turn in _read_turns(path, session / "sentences" / "wav")]
        if not turns:
            raise UserError(f"er: none of {', '.join(EMOTIONS)} in {evaluations}")
        sessions.append(turns)
    return sessions


def leave_one_session_out(sessions: Sequence[Sequence[Example]], seed: int, dev_share: float = 0.2) -> list[Splits]:
    """One fold per session, which is its test split; dev_share of the rest is dev, drawn by the seed.

    Raises UserError if that leaves nothing to train on.
    """
    folds = []
    for held_out, test in enumerate(sessions):
        rest = [item for number, session in enumerate(sessions) if number != held_out for item in session]
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed)).tolist()
        count = max(1, round(dev_share * len(rest)))
        if count == len(rest):
            raise UserError(f"er: {len(rest)} utterance outside Session{held_out + 1}; expected 2 or more")
        dev, train = sorted(order[:count]), sorted(order[count:])
        folds.append(Splits([rest[place] for place in train], [rest[place] for place in dev], list(test)))
    return folds


def durations(examples: Sequence[Example], shortest: float, longest: float = math.inf) -> list[float]:
    """The duration of each example in seconds. All audio is decoded, so that a bad file shows before training.

    Raises UserError for a file that is missing, cannot be read or is not `shortest` to `longest` seconds long.
    """

    def duration(example: Example) -> float:
        try:
            if not example.audio.is_file():
                raise UserError(f"the audio file {example.audio} does not exist")
            seconds, rate = check_audio(example.audio)
            read_audio(example.audio, rate)
        except (UserError, OSError) as error:  # a path too long is the system's to refuse
            raise UserError(f"{example.where}: {error}") from error
        if seconds < shortest:
            raise UserError(
                f"{example.where}: {example.audio} lasts {seconds:.3f} s; expected {shortest:.3f} s or more, "
                "one frame of the encoder"
            )
        if seconds > longest:
            raise UserError(
                f"{example.where}: {example.audio} lasts {seconds:.2f} s; expected {longest:g} s or less, as the "
                "encoder has positions for no more"
            )
        return seconds

    with ThreadPoolExecutor(8) as pool:
        found = pool.map(duration, examples)
        return list(tqdm(found, total=len(examples), desc="checking audio", unit="file", leave=False))
