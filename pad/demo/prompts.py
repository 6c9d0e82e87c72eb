"""Real speech with word times: the English voice prompts of Asterisk, from Debian packages, aligned by PocketSphinx."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from pad.errors import UserError
from pad.files import whole_folder

NAME = "prompts"
PACKAGES = ("asterisk-core-sounds-en", "asterisk-core-sounds-en-g722")
ATTRIBUTION = (
    "Asterisk core sounds, English: spoken by Allison Smith, copyright 2003-2010, financed by Digium, Inc.; licensed\n"
    "under CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/). Decoded to wav; word times were added."
)
_RATE = 16000
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()


def fetch(folder: Path) -> Path:
    """Download and align the prompts to `folder` unless they are there.

    Raises UserError where that is impossible, or something else is in the folder.
    """
    if (folder / f"{NAME}.jsonl").is_file():
        return folder
    with whole_folder(folder, replaces=False) as partial, tempfile.TemporaryDirectory(dir=partial) as scratch:
        _unpack_packages(Path(scratch))
        convert(Path(scratch), partial)
    return folder


def _unpack_packages(folder: Path) -> None:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(f"prompts: {tool} is missing; expected a Debian or Ubuntu system, which has the recordings")
    _run(["apt-get", "download", *PACKAGES], folder)
    for archive in sorted(folder.glob("*.deb")):
        _run(["dpkg", "-x", archive.name, "."], folder)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"prompts: {' '.join(command)} failed: {last_line}")


def convert(packages: Path, folder: Path) -> int:
    """Write the prompts of unpacked packages to a folder as 16 kHz wav files and `prompts.jsonl`; returns their number.

    A prompt is left out if it is not plain speech, has a word that is not in the dictionary, or cannot be aligned.
    """
    listing = next(packages.rglob("core-sounds-en.txt.gz"), None)
    one_of_them = next(packages.rglob("vm-goodbye.g722"), None)
    if listing is None or one_of_them is None:
        raise UserError(f"prompts: {packages} lacks files of {' and '.join(PACKAGES)}; expected the unpacked packages")
    lines = gzip.decompress(listing.read_bytes()).decode("utf-8", errors="replace").splitlines()
    aligner, rows = _Aligner(), []
    for line in lines:
        match = re.match(r"([\w/-]+):\s*([^\[(]+)$", line)
        if match is None:
            continue
        audio, text = one_of_them.parent / f"{match[1]}.g722", spoken(match[2])
        if not audio.is_file() or not aligner.knows(text):
            continue
        samples = _decode(audio)
        words = aligner.align(samples, text)
        if words:
            name = f"{match[1].replace('/', '_')}.wav"
            soundfile.write(folder / name, samples, _RATE, "PCM_16")
            rows.append({"audio": name, "text": text, "words": words})
    (folder / f"{NAME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ATTRIBUTION").write_text(ATTRIBUTION + "\n")
    return len(rows)


def spoken(text: str) -> str:
    """A prompt as its words are spoken: lower case, numbers up to nineteen as words, no punctuation."""

    def number(match: re.Match) -> str:
        return f" {_NUMBERS[int(match[0])] if int(match[0]) < len(_NUMBERS) else match[0]} "

    plain = re.sub(r"[^a-z0-9' ]+", " ", re.sub(r"\d+", number, text.lower().replace("’", "'")))
    return " ".join(word for word in (word.strip("'") for word in plain.split()) if word)


def _decode(path: Path) -> np.ndarray:
    import av

    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.int16)


class _Aligner:
    """PocketSphinx's forced alignment with its own acoustic model and dictionary of English."""

    def __init__(self):
        import pocketsphinx

        models = Path(pocketsphinx.get_model_path()) / "en-us"
        config = pocketsphinx.Config(
            hmm=str(models / "en-us"), dict=str(models / "cmudict-en-us.dict"), loglevel="FATAL", bestpath=False,
            backtrace=False,
        )  # fmt: skip
        config["lm"] = None
        self._decoder = pocketsphinx.Decoder(config)

    def knows(self, text: str) -> bool:
        """Whether there is a word, and the dictionary has every one."""
        words = text.split()
        return bool(words) and all(self._decoder.lookup_word(word) is not None for word in words)

    def align(self, samples: np.ndarray, text: str) -> list[tuple[str, float, float]] | None:
        """(word, start, end) in seconds of int16 samples [T]; None where they do not fit the text."""
        self._decoder.set_align_text(text)
        self._listen(samples)
        if self._decoder.hyp() is None:
            return None
        self._decoder.set_alignment()  # a second pass that gives the times
        self._listen(samples)
        found = [
            (re.sub(r"\(\d+\)$", "", word.name), word.start / 100, (word.start + word.duration) / 100)
            for word in self._decoder.get_alignment()
        ]
        words = [word for word in found if word[0][0] not in "<["]
        return words if [word for word, _, _ in words] == text.split() else None

    def _listen(self, samples: np.ndarray) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
