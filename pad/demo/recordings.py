"""Real speech with word times: five LibriVox utterances from the source package of PocketSphinx.

`python -m pad.demo.recordings FOLDER` downloads them with pip.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pad.data import load_utterances
from pad.demo.corpus import SpokenSentence, SpokenWord
from pad.errors import UserError
from pad.processes import python_command

_INSIDE = re.compile(r"pocketsphinx-[^/]+/test/data/librivox/([^/]+\.wav|sense[^/.]+\.json|transcription)")


def fetch(folder: Path) -> Path:
    """Download the recordings to `folder` unless they are there; raises RuntimeError if pip cannot get them."""
    if (folder / "transcription").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        options = ["--quiet", "--no-deps", "--no-binary", "pocketsphinx", "--dest", scratch]
        command = python_command("pip", "download", *options, "pocketsphinx")
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(scratch).glob("pocketsphinx-*.tar.gz"))
        if done.returncode != 0 or not archives:
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"pip could not fetch the source package of pocketsphinx: {last_line}")
        partial = Path(scratch) / "recordings"
        partial.mkdir()
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                match = _INSIDE.fullmatch(member.name)
                content = archive.extractfile(member) if match and member.isfile() else None
                if match and content is not None:
                    (partial / match.group(1)).write_bytes(content.read())
        partial.rename(folder)
    return folder


def find(folder: str | None) -> Path | None:
    """The given folder, or else the one that the tests have downloaded, or None; UserError if it is missing."""
    if folder is not None:
        if not Path(folder).is_dir():
            raise UserError(f"recordings: {folder} is not a folder")
        return Path(folder)
    fetched = Path(os.environ.get("PAD_TEST_DATA", "tests/.cache")) / "librivox"
    return fetched if (fetched / "transcription").is_file() else None


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


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
