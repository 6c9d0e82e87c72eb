"""From the `data` setting to checked utterances."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from pad.data import corpora, hugging_face
from pad.data.audio import check_audio
from pad.data.entry import Entry, Utterance, listed
from pad.data.folders import find_transcripts
from pad.data.manifests import MANIFEST_SUFFIXES, read_manifest
from pad.data.report import BadSample, Report
from pad.errors import UserError

_THREADS = 8
_CORPORA = {"librispeech": corpora.librispeech, "librilight": corpora.librilight}
_FORMS = (
    "a folder, a manifest (.tsv, .jsonl, .json), librispeech:SPLIT:FOLDER, librilight:SUBSET:FOLDER or "
    "huggingface:NAME:SPLIT"
)


def find_entries(data, report: Report, download: bool = False) -> list[Entry]:
    """The entries of what `data` names (see `pad.data`); raises UserError."""
    if not isinstance(data, (str, Path)):
        return hugging_face.entries_of(data, report)
    kind, colon, rest = str(data).partition(":")
    if colon and kind in _CORPORA:
        part, colon, folder = rest.partition(":")
        if not part or not folder:
            raise UserError(f"data: expected {kind}:PART:FOLDER, got {data}")
        return _CORPORA[kind](part, Path(os.path.expanduser(folder)), report, download)
    if colon and kind == "huggingface":
        return hugging_face.entries_of(hugging_face.load_named(rest), report, rest)
    path = Path(os.path.expanduser(data))
    if path.is_dir():
        if hugging_face.is_saved(path):
            return hugging_face.entries_of(hugging_face.load_saved(path), report, str(path))
        return find_transcripts(path, report)
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        what = f"a file that ends in {path.suffix!r}" if path.is_file() else "not a folder"
        raise UserError(f"data: {path} is {what}; expected {_FORMS}")
    if not path.is_file():
        raise UserError(f"data: the manifest {path} does not exist")
    return read_manifest(path, report)


def _check(entry: Entry, min_samples: int, sampling_rate: int) -> Utterance:
    if not entry.transcript:
        of_what = f" for {entry.audio.name}" if isinstance(entry.audio, Path) else ""
        raise BadSample(f"{entry.where}: empty transcript{of_what}", "empty transcript")
    if isinstance(entry.audio, Path) and not entry.audio.is_file():
        what = "is a folder, expected an audio file" if entry.audio.is_dir() else "does not exist"
        raise BadSample(f"{entry.where}: the audio file {entry.audio} {what}", "missing file")
    try:
        entry.transcript.encode()
    except UnicodeEncodeError as error:
        raise BadSample(f"{entry.where}: not a text: {error}", "unreadable transcript") from error
    try:
        duration, rate = check_audio(entry.audio)
    except BadSample as bad:
        raise BadSample(listed(str(bad), entry), bad.reason) from bad
    if entry.sampling_rate not in (None, rate):
        raise BadSample(
            f"{entry.where}: stated as {entry.sampling_rate:g} Hz, but {entry.audio} has {rate} Hz",
            "wrong sampling rate",
        )
    # A list may round, or count the frames of the features.
    if entry.duration is not None and abs(entry.duration - duration) > max(0.1, 0.02 * duration):
        raise BadSample(
            f"{entry.where}: stated as {entry.duration:g} s, but {entry.audio} lasts {duration:.3f} s",
            "wrong duration",
        )
    if duration * sampling_rate < min_samples:
        shortest = min_samples / sampling_rate
        message = f"{entry.audio}: {duration:.3f} s of audio is shorter than one frame of the student, {shortest:.3f} s"
        raise BadSample(listed(message, entry), "too short")
    size = entry.audio.stat().st_size if isinstance(entry.audio, Path) else None
    return Utterance(entry.audio, entry.transcript, duration, entry.where, size)


def _in_threads(work: Callable, items: Iterable) -> Iterator:
    """Map in threads, in order; in slices, so that an error does not wait for the whole corpus."""
    items = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(islice(items, 32 * _THREADS)):
            yield from pool.map(work, part)


def load_utterances(
    data,
    min_samples: int = 1,
    max_samples: int | None = None,
    sampling_rate: int = 16000,
    max_seconds: float | None = None,
    progress: Callable[[list], Iterable] = iter,
    report: Report | None = None,
    download: bool = False,
) -> list[Utterance]:
    """The utterances of what `data` names (see `pad.data`), in its order; the audio of each holds what it promises.

    min_samples, max_samples: the shortest and the longest audio the student takes, in samples at sampling_rate (Hz);
    max_seconds: longer utterances are left out, which is no error; progress: wraps the list of entries as they are
    checked;
    report: how to handle bad samples, None to raise the first; download: fetch a corpus that is missing.
    Raises UserError that names the file, and the line where there is one.
    """
    report = Report() if report is None else report

    def outcome(entry: Entry) -> Utterance | BadSample:
        try:
            return _check(entry, min_samples, sampling_rate)
        except BadSample as bad:
            return bad
        except (OSError, ValueError) as error:  # of the system, such as a name that is too long for it
            return BadSample(f"{entry.where}: {entry.audio} cannot be used: {error}", "unreadable audio")

    entries = find_entries(data, report, download)
    utterances = []
    for entry, result in zip(entries, _in_threads(outcome, progress(entries)), strict=True):
        if isinstance(result, BadSample):
            report.refuse(result)
        elif max_seconds is not None and result.duration > max_seconds:
            message = f"{result.audio}: {result.duration:.3f} s of audio is longer than {max_seconds:g} s"
            report.leave_out(BadSample(listed(message, entry), "too long"))
        elif max_samples is not None and result.duration * sampling_rate > max_samples:
            longest = max_samples / sampling_rate
            message = f"{result.audio}: {result.duration:.3f} s of audio; the student has positions for {longest:g} s"
            report.refuse(BadSample(listed(message, entry), "too long for the student"))
        else:
            utterances.append(result)
    if not utterances:
        name = data if isinstance(data, (str, Path)) else "the dataset"
        limit = f" of at most {max_seconds:g} s" if report.counts["too long"] else ""
        rest = f"; {report}" if report.total else ", which lists none"
        raise UserError(f"data: no transcribed audio{limit} found in {name}{rest}")
    return utterances
