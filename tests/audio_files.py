"""Small audio files for the tests of the data."""

from pathlib import Path

import numpy as np
import soundfile


def write_audio(path: Path, seconds=0.5, rate=16000, channels=1) -> Path:
    """A tone; the kind of file is told by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.1 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate)
    return path


def write_noise(path: Path, seconds=1.0) -> Path:
    """Noise, which a codec cannot make much smaller; the kind of file is told by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * 16000)), 16000)
    return path


def write_truncated_flac(path: Path, seconds=1.0) -> Path:
    """A file whose header is sound and which ends too early."""
    content = write_noise(path, seconds).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def write_damaged_flac(path: Path, seconds=2.0) -> Path:
    """A file whose header and end are sound and whose samples between are not."""
    content = bytearray(write_noise(path, seconds).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8000] = bytes(8000)
    path.write_bytes(content)
    return path


def write_chapter(split: Path, speaker=19, chapter=198, texts=("NORTHANGER ABBEY", "THIS WORK")) -> Path:
    """A chapter as LibriSpeech lays it out below the folder of a split."""
    folder = split / str(speaker) / str(chapter)
    lines = []
    for number, text in enumerate(texts):
        identifier = f"{speaker}-{chapter}-{number:04d}"
        write_audio(folder / f"{identifier}.flac")
        lines.append(f"{identifier} {text}\n")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder
