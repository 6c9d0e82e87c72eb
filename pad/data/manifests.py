"""Manifests: files that list audio and transcripts, one utterance per line.

- `.tsv`: audio path, a tab, the transcript; or columns in any order with a first line that names them. A cell may stand
  in double quotes, with quotes in it doubled, as spreadsheets write it;
- `.jsonl`, `.json`: one object per line.

Names of columns and keys: `audio` (or `audio_filepath`, `path`, `file`), `text` (or `transcript`,
`transcription`, `sentence`), and optionally `duration` (s) and `sampling_rate` (or `sample_rate`, Hz), which
are compared with the audio. Other names are ignored. Paths are relative to the manifest. What is given twice, and
differs, is an error.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pad.data.entry import Entry
from pad.data.report import BadSample, Report
from pad.errors import UserError, reason, shown

AUDIO_NAMES = ("audio", "audio_filepath", "path", "file")
TEXT_NAMES = ("text", "transcript", "transcription", "sentence")
_RATE_NAMES = ("sampling_rate", "sample_rate")
_NAMES = (*AUDIO_NAMES, *TEXT_NAMES, *_RATE_NAMES, "duration")
MANIFEST_SUFFIXES = (".tsv", ".jsonl", ".json")


# A cell in quotes, up to a tab or the end, or one without.
_CELL = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?:\t|$)|([^\t]*)(?:\t|$)')


def _malformed(message: str) -> BadSample:
    return BadSample(message, "malformed line")


def read_lines(path: Path, report: Report) -> Iterator[tuple[str, str]]:
    """(file:line, line) for each line of a UTF-8 text file that is not blank."""
    try:
        content = path.read_bytes()
    except OSError as error:
        report.refuse(BadSample(f"{path}: cannot be read as UTF-8 text: {reason(error)}", "unreadable transcript"))
        return
    # Not str.splitlines, which also splits at characters that a transcript may contain.
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            report.refuse(BadSample(f"{where}: cannot be read as UTF-8 text: {error}", "unreadable transcript"))
            continue
        if text.strip():
            yield where, text


def _cells(line: str) -> list[str]:
    cells, place = [], 0
    while place <= len(line):
        found = _CELL.match(line, place)
        assert found is not None  # the second way always matches
        quoted, plain = found.groups()
        cells.append((plain if quoted is None else quoted.replace('""', '"')).strip())
        if not found[0].endswith("\t"):
            break
        place = found.end()
    return cells


def _value(record: dict, names: tuple[str, ...], where: str):
    found = [(name, record[name]) for name in names if name in record]
    other = next((name for name, value in found[1:] if value != found[0][1]), None)
    if other is not None:
        raise _malformed(f"{where}: {found[0][0]} and {other} differ; expected one of {', '.join(names)}")
    return found[0][1] if found else None


def _number(record: dict, names: tuple[str, ...], where: str) -> float | None:
    value = _value(record, names, where)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise _malformed(f"{where}: expected a positive number as {names[0]}, got {shown(value)}")
    return number


def _entry(record: dict, folder: Path, where: str) -> Entry:
    audio, transcript = (_value(record, names, where) for names in (AUDIO_NAMES, TEXT_NAMES))
    for value, names in ((audio, AUDIO_NAMES), (transcript, TEXT_NAMES)):
        if not isinstance(value, str) or (names is AUDIO_NAMES and not value.strip()):
            raise _malformed(f"{where}: expected a text as {' or '.join(names)}, got {shown(value)}")
    if record.get("offset") not in (None, "", 0, "0"):
        offset = shown(record["offset"])
        raise _malformed(f"{where}: expected a whole audio file, got a part of one, from offset {offset} on")
    return Entry(
        folder / os.path.expanduser(audio.strip()),
        transcript.strip(),
        where,
        _number(record, _RATE_NAMES, where),
        _number(record, ("duration",), where),
    )


def _header(cells: list[str], folder: Path, where: str) -> list[str] | None:
    names = [cell.lower() for cell in cells]
    if not ({*names} & {*AUDIO_NAMES} and {*names} & {*TEXT_NAMES}):
        # A name of a column where no file has that name: the other column has a name that is not known.
        if {*names} & {*_NAMES} and not Path(cells[0]).suffix and not (folder / cells[0]).is_file():
            expected = f"one of {', '.join(AUDIO_NAMES)} and one of {', '.join(TEXT_NAMES)}"
            raise UserError(f"{where}: got the columns {', '.join(names)}; expected {expected}")
        return None
    twice = next((name for name in names if name in _NAMES and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column {twice} appears twice; expected it once")
    return names


def _object(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{shown(twice)} appears twice")
    return record


def read_table(path: Path, report: Report) -> Iterator[Entry]:
    """The entries of a `.tsv` manifest."""
    names: list[str] | None = None
    for position, (where, line) in enumerate(read_lines(path, report)):
        cells = _cells(line)
        if position == 0 and (names := _header(cells, path.parent, where)):
            continue
        try:
            if len(cells) != len(names or ("audio", "text")):
                expected = f"{len(names)} columns" if names else "an audio path, a tab and a transcript, or names"
                raise _malformed(f"{where}: expected {expected}, got {shown(line)}")
            entry = _entry(dict(zip(names or ("audio", "text"), cells)), path.parent, where)
        except BadSample as bad:
            report.refuse(bad)
        else:
            yield entry


def read_json_lines(path: Path, report: Report) -> Iterator[Entry]:
    """The entries of a `.jsonl` or `.json` manifest."""
    for where, line in read_lines(path, report):
        try:
            try:
                record = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise _malformed(f"{where}: expected one JSON object per line, got {shown(line)}: {error}") from error
            if not isinstance(record, dict):
                raise _malformed(f"{where}: expected one JSON object per line, got {shown(line)}")
            entry = _entry(record, path.parent, where)
        except BadSample as bad:
            report.refuse(bad)
        else:
            yield entry


def read_manifest(path: Path, report: Report) -> list[Entry]:
    """The entries of a manifest, in the order of its lines."""
    return list((read_table if path.suffix.lower() == ".tsv" else read_json_lines)(path, report))
