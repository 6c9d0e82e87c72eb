"""Real speech with word times to judge a student on: `python -m pad.demo.recordings [FOLDER]` fetches it.

A source is a file NAME.jsonl with a line {"audio": path, "text": ..., "words": [[word, start, end], ...]} for each
recording: the path is relative to the file, the words are those of the text, times are in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pad.data import load_utterances
from pad.data.manifests import read_lines
from pad.data.report import Report
from pad.demo import librivox, prompts
from pad.demo.corpus import SpokenSentence, SpokenWord
from pad.errors import UserError, missing_package
from pad.files import only_run

DEFAULT = Path("runs/recordings")
FEWEST_WORDS = 3
_TOLERANCE = 0.1  # s: an aligner's frames may end after the audio


def fetch(folder: Path) -> Path:
    """Download both sources to `folder`, unless they are there; raises UserError where that is impossible."""
    for source in (librivox, prompts):
        with only_run(folder / source.NAME, beside=True):
            print(source.fetch(folder / source.NAME))
        print(source.ATTRIBUTION)
    return folder


def find(folder: str) -> Path | None:
    """The given folder, or else the default one if it is there, or None; UserError if the given one is missing."""
    if not folder:
        return DEFAULT if DEFAULT.is_dir() else None
    if not Path(folder).is_dir():
        raise UserError(f"recordings: {folder} is not a folder")
    return Path(folder)


def with_enough_words(items: list[SpokenSentence]) -> list[SpokenSentence]:
    """Those with three words or more: in fewer a frame drawn at random is too often right."""
    return [item for item in items if len(item.words) >= FEWEST_WORDS]


def load(folder: Path) -> dict[str, list[SpokenSentence]]:
    """The recordings of each source in a folder and the folders in it, by the source's name; raises UserError."""
    files = sorted(folder.rglob("*.jsonl"))
    if not files:
        raise UserError(f"recordings: no .jsonl file in {folder}; python -m pad.demo.recordings {folder} fetches some")
    sources = {file.stem: _read(file) for file in files}
    if len(sources) < len(files):
        raise UserError(f"recordings: expected files of different names, got {', '.join(map(str, files))}")
    return sources


def _read(file: Path) -> list[SpokenSentence]:
    utterances = load_utterances(file)
    spoken = []
    for item, (where, line) in zip(utterances, read_lines(file, Report()), strict=True):
        words = _words(json.loads(line).get("words"), item.transcript, item.duration)
        if words is None:
            raise UserError(
                f"recordings: {where}: expected words [[word, start, end], ...], those of the text, with "
                f"starts in order and each end (s) after its start, within the {item.duration:.2f} s of the audio"
            )
        spoken.append(SpokenSentence(item.audio, item.transcript, item.duration, words=words))
    return spoken


def _words(values: object, text: str, duration: float) -> tuple[SpokenWord, ...] | None:
    """The words of a line; None if they are not what they should be."""
    try:
        words = tuple(SpokenWord(str(word), float(start), float(end), True) for word, start, end in values)  # type: ignore
    except (TypeError, ValueError):
        return None
    starts = [word.start for word in words]
    fits = starts == sorted(starts) and all(0 <= word.start < word.end <= duration + _TOLERANCE for word in words)
    return words if words and fits and [word.text for word in words] == text.split() else None


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pad.demo.recordings", description="Fetches real speech with word times."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT, help=f"where it goes (default: {DEFAULT})")
    try:
        fetch(parser.parse_args(arguments).folder)
    except UserError as error:
        sys.exit(f"recordings: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"recordings: {missing_package(error, 'recordings')}")


if __name__ == "__main__":
    main()
