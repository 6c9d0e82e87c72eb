"""Folders of transcribed speech.

Four layouts are read. If a folder holds transcript lists (the first three), only what they list is used, and other
audio is counted as left out; otherwise every audio file needs a transcript next to it:

- `transcripts.tsv` in the folder: audio path (relative to the file), a tab, the transcript;
- LibriSpeech and Libri-Light, `*.trans.txt` anywhere below: utterance id, a space, the transcript; audio
  `id.flac` next to it. The folder may be a split, `LibriSpeech`, or the one that holds it;
- Sphinx, `transcription` or `*.transcription` anywhere below: `<s> the transcript </s> (id)`;
- `name.txt` or `name.lab` next to `name.wav`; one without audio is counted as left out.

Files and folders whose names begin with a dot are hidden: they are not read, and hidden audio is counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pad.data.audio import AUDIO_SUFFIXES, OTHER_AUDIO_SUFFIXES
from pad.data.entry import Entry
from pad.data.manifests import read_lines, read_table
from pad.data.report import BadSample, Report
from pad.errors import UserError, reason, shown


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES + OTHER_AUDIO_SUFFIXES


def _audio_of(stem: Path, where: str) -> Path:
    for suffix in AUDIO_SUFFIXES:
        for candidate in (stem.with_name(stem.name + suffix), stem.with_name(stem.name + suffix.upper())):
            if candidate.is_file():
                return candidate
    raise BadSample(
        f"{where}: no audio file {stem} with one of the endings {', '.join(AUDIO_SUFFIXES)}", "missing file"
    )


def _librispeech_line(folder: Path, line: str, where: str) -> Entry:
    identifier, _, transcript = line.strip().partition(" ")
    return Entry(_audio_of(folder / identifier, where), transcript.strip(), where)


def _sphinx_line(folder: Path, line: str, where: str) -> Entry:
    match = re.fullmatch(r"(.*)\(([^()\s]+)\)", line.strip())
    if match is None:
        raise BadSample(
            f"{where}: expected a transcript and the utterance's id in brackets, got {shown(line)}",
            "malformed line",
        )
    transcript = re.sub(r"</?s>", " ", match.group(1))
    return Entry(_audio_of(folder / match.group(2), where), transcript.strip(), where)


def _read_list(path: Path, read_line, report: Report) -> Iterator[Entry]:
    for where, line in read_lines(path, report):
        try:
            entry = read_line(path.parent, line, where)
        except BadSample as bad:
            report.refuse(bad)
        else:
            yield entry


def _beside(audio: Path, files: set[Path]) -> Entry:
    for path in (audio.with_suffix(".txt"), audio.with_suffix(".lab")):
        if path in files:
            break
    else:
        raise BadSample(
            f"{audio}: no transcript; looked for {audio.stem}.txt and {audio.stem}.lab next to it",
            "missing transcript",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSample(f"{path}: cannot be read as UTF-8 text: {reason(error)}", "unreadable transcript") from error
    return Entry(audio, " ".join(text.split()), str(path))


def _read_siblings(files: list[Path], report: Report) -> Iterator[Entry]:
    among = set(files)
    for audio in files:
        if not _is_audio(audio):
            continue
        try:
            entry = _beside(audio, among)
            if audio.suffix.lower() in OTHER_AUDIO_SUFFIXES:
                raise BadSample(
                    f"{audio}: audio of this kind cannot be read; expected one of {', '.join(AUDIO_SUFFIXES)}",
                    "unsupported audio format",
                )
        except BadSample as bad:
            report.refuse(bad)
        else:
            yield entry
    spoken = {path.with_suffix("") for path in files if _is_audio(path)}
    for path in files:
        if path.suffix in (".txt", ".lab") and path.with_suffix("") not in spoken:
            report.leave_out(BadSample(f"{path}: a text without audio next to it", "text without audio"))


def _leave_out_unlisted(files: list[Path], entries: list[Entry], report: Report) -> None:
    listed = {os.path.abspath(str(entry.audio)) for entry in entries}
    for path in files:
        if _is_audio(path) and os.path.abspath(path) not in listed:
            report.leave_out(BadSample(f"{path}: audio that no list of transcripts names", "audio not listed"))


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files, and the hidden ones, sorted; links to folders are followed, and each folder is visited once.

    Raises UserError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"data: cannot read the folder {error.filename}: {reason(error)}") from error

    files: list[Path] = []
    hidden: list[Path] = []
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        for name in names:
            path = Path(parent, name)
            kind = hidden if any(part.startswith(".") for part in path.relative_to(folder).parts) else files
            kind.append(path)
    return sorted(files), sorted(hidden)


def find_transcripts(folder: str | Path, report: Report | None = None) -> list[Entry]:
    """The entries of a folder in one of the layouts above, in the order of their paths.

    report: how to handle a line or file that cannot be read, None to raise an error. Raises UserError.
    """
    report = report or Report()
    files, hidden = _files_below(Path(folder))
    readers: list[Iterable[Entry]] = []
    table = Path(folder) / "transcripts.tsv"
    if table.is_file():
        readers.append(read_table(table, report))
    for path in files:
        if path.name.endswith(".trans.txt"):
            readers.append(_read_list(path, _librispeech_line, report))
    for path in files:
        if path.name == "transcription" or path.name.endswith(".transcription"):
            readers.append(_read_list(path, _sphinx_line, report))
    if readers:
        entries = [entry for reader in readers for entry in reader]
        _leave_out_unlisted(files, entries, report)
    else:
        entries = list(_read_siblings(files, report))
    for path in filter(_is_audio, hidden):
        report.leave_out(BadSample(f"{path}: hidden, its name or that of its folder begins with a dot", "hidden audio"))
    return entries
