"""Real speech with word times: five LibriVox utterances from the source package of PocketSphinx."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from pad.data import load_utterances
from pad.demo.corpus import SpokenSentence, SpokenWord
from pad.errors import UserError
from pad.files import whole_folder, write_text
from pad.processes import python_command

NAME = "librivox"
ATTRIBUTION = (
    "LibriVox: chapter 1 of Sense and Sensibility by Jane Austen, five utterances with word times from the source\n"
    "package of PocketSphinx; LibriVox recordings are in the public domain (https://librivox.org)."
)
_INSIDE = re.compile(r"pocketsphinx-[^/]+/test/data/librivox/([^/]+\.wav|sense[^/.]+\.json|transcription)")


def fetch(folder: Path) -> Path:
    """Download the recordings to `folder` unless they are there.

    Raises UserError if pip cannot get them, or something else is in the folder.
    """
    if not (folder / "transcription").is_file():
        _download(folder)
    listing = folder / f"{NAME}.jsonl"
    if not listing.is_file():
        rows = [
            {
                "audio": Path(str(item.audio)).name,
                "text": item.transcript,
                "words": [[word.text, word.start, word.end] for word in item.words],
            }
            for item in load(folder)
        ]
        write_text(listing, "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _download(folder: Path) -> None:
    with whole_folder(folder, replaces=False) as partial, tempfile.TemporaryDirectory(dir=partial) as scratch:
        options = ["--quiet", "--no-deps", "--no-binary", "pocketsphinx", "--dest", scratch]
        command = python_command("pip", "download", *options, "pocketsphinx")
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(scratch).glob("pocketsphinx-*.tar.gz"))
        if done.returncode != 0 or not archives:
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{NAME}: pip could not fetch the source package of pocketsphinx: {last_line}")
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                match = _INSIDE.fullmatch(member.name)
                content = archive.extractfile(member) if match and member.isfile() else None
                if match and content is not None:
                    (partial / match.group(1)).write_bytes(content.read())


def load(folder: Path) -> list[SpokenSentence]:
    """The utterances of a folder, with word times from `name.json` next to `name.wav` (PocketSphinx's format)."""
    spoken = []
    for item in load_utterances(folder):
        times = Path(str(item.audio)).with_suffix(".json")
        if not times.is_file():
            raise UserError(f"{item.audio}: no word times; expected {times.name} next to it")
        record = json.loads(times.read_text())
        words = tuple(
            SpokenWord(re.sub(r"\(\d+\)$", "", word["t"]), word["b"], word["b"] + word["d"], True)
            for word in record["w"]
            if not word["t"].startswith("<")
        )
        transcript = " ".join(word.text for word in words)
        if transcript != item.transcript:
            raise UserError(f"{times}: the words {transcript!r} differ from the transcript {item.transcript!r}")
        spoken.append(SpokenSentence(item.audio, transcript, item.duration, words=words))
    return spoken
