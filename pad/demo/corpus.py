"""Synthetic speech for the demo: sentences spoken by many voices, with the true time of every word."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from pad.data import Utterance
from pad.processes import python_command

SAMPLING_RATE = 16000

# No voice occurs in two splits. Accents and voice variants of eSpeak NG.
_VARIANTS = {
    "train": ["m1", "m2", "m3", "m4", "f1", "f2", "f3", "f4"],
    "dev": ["m5", "Alex"],
    "test": ["m7", "f5"],
}
_ACCENTS = ["en-us", "en"]


@dataclass(frozen=True)
class SpokenWord:
    """A word and when it is spoken, in seconds; `known` is False where its start or end is not known."""

    text: str
    start: float
    end: float
    known: bool


@dataclass(frozen=True, order=True)
class Clip:
    """A part of a file with the speech of many sentences: thousands of small files take seconds to remove."""

    name: str
    file: Path
    first: int
    length: int

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """The part as a wav file."""
        content = io.BytesIO()
        samples, rate = soundfile.read(self.file, self.length, self.first, dtype="int16")
        soundfile.write(content, samples, rate, "PCM_16", format="WAV")
        return content.getvalue()


@dataclass(frozen=True)
class SpokenSentence(Utterance):
    """An utterance with its words; intent is None for free sentences."""

    words: tuple[SpokenWord, ...] = ()
    intent: str | None = None


def speak(
    sentences: list[tuple[str, str | None]],
    split: str,
    folder: Path,
    random_source: random.Random,
    progress=lambda count: None,
    processes: int = 2,
) -> list[SpokenSentence]:
    """Synthesize (sentence, intent) pairs with the voices of a split: 16 kHz wav files in `folder`.

    progress: called with the number of sentences done since its last call.
    """
    folder.mkdir(parents=True)
    requests = [
        {
            "text": sentence,
            "voice": f"{random_source.choice(_ACCENTS)}+{random_source.choice(_VARIANTS[split])}",
            "rate": random_source.randint(150, 210),
            "pitch": random_source.randint(30, 70),
            "pitch_range": random_source.randint(30, 70),
        }
        for sentence, _ in sentences
    ]
    seeds = [random_source.getrandbits(32) for _ in sentences]
    parts = [range(first, len(requests), processes) for first in range(min(processes, len(requests)))]

    stop = threading.Event()

    def speak_part(part: range) -> list[SpokenSentence]:
        output = folder / f"part-{part.start}"
        _run_speaker([requests[number] for number in part], output, progress, stop)
        return _write_part(part, output, [sentences[number] for number in part], [seeds[n] for n in part], folder, stop)

    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            spoken = sorted(
                (item for part in pool.map(speak_part, parts) for item in part), key=lambda item: str(item.audio)
            )
        finally:
            stop.set()  # after Ctrl-C the threads and their processes would go on
    return spoken


def _run_speaker(requests: list[dict], output: Path, progress, stop: threading.Event) -> None:
    command = python_command("pad.demo.speaker", str(output))
    # In a session of its own, a Ctrl-C of the terminal reaches this process alone, which ends the speaker.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as speaker:
        assert speaker.stdin is not None and speaker.stdout is not None  # both are pipes
        threading.Thread(target=_end_with, args=(speaker, stop), daemon=True).start()
        with suppress(BrokenPipeError):  # its return code says that it failed
            speaker.stdin.write(json.dumps(requests))
            speaker.stdin.close()
        done = 0
        for line in speaker.stdout:
            progress(int(line) - done)
            done = int(line)
        progress(len(requests) - done)
    if speaker.returncode == os.EX_IOERR:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))
    if speaker.returncode != 0:
        raise RuntimeError(f"speech synthesis failed: the speaker ended with code {speaker.returncode}")


def _end_with(speaker: subprocess.Popen, stop: threading.Event) -> None:
    stop.wait()
    speaker.kill()  # does nothing once it has ended


def _write_part(part, output: Path, sentences, seeds, folder: Path, stop: threading.Event) -> list[SpokenSentence]:
    data = json.loads(output.with_suffix(".json").read_text())
    samples = np.load(output.with_suffix(".npy"), mmap_mode="r")
    rate, first, written, spoken = data["sample_rate"], 0, 0, []
    file = folder / f"speech-{part.start}.wav"
    with soundfile.SoundFile(file, "w", SAMPLING_RATE, 1, "PCM_16") as speech:
        for number, (sentence, intent), seed, record in zip(part, sentences, seeds, data["utterances"]):
            if stop.is_set():
                break
            waveform = samples[first : first + record["length"]].astype(np.float32) / 32768
            first += record["length"]
            heard = _as_heard(waveform, rate, np.random.default_rng(seed))
            speech.write(heard)
            audio = Clip(f"{folder.name}-{number:05d}", file, written, len(heard))
            written += len(heard)
            duration = record["length"] / rate
            starts = {offset: sample / rate for offset, sample in record["words"]}
            words = word_times(sentence, starts, duration)
            spoken.append(SpokenSentence(audio, sentence, duration, words=words, intent=intent))
    for suffix in (".json", ".npy"):
        output.with_suffix(suffix).unlink()
    return spoken


def _as_heard(waveform: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
    """At 16 kHz, at a random level, with noise 20 to 40 dB below the speech."""
    waveform = soxr.resample(waveform, rate, SAMPLING_RATE, quality="MQ")
    level = np.sqrt(np.mean(waveform**2)) + 1e-8
    noise = generator.standard_normal(len(waveform), dtype=np.float32)
    heard = waveform + noise * level * 10 ** (-generator.uniform(20, 40) / 20)
    return np.clip(heard * (generator.uniform(0.03, 0.1) / level), -1, 1)


def word_times(sentence: str, starts: dict[int, float], duration: float) -> tuple[SpokenWord, ...]:
    """Words of a sentence with their times (s), from the start times that the synthesizer reports by offset.

    It joins some words to the one before ("on the"). Such a word has no start of its own and the word before it no
    end; both are marked as not known.
    """
    offsets, position = [], 0
    words = sentence.split()
    for word in words:
        offsets.append(sentence.index(word, position))
        position = offsets[-1] + len(word)
    begins = [starts.get(offset) for offset in offsets] + [duration]
    return tuple(
        SpokenWord(word, begin or 0.0, end or 0.0, begin is not None and end is not None and end > begin)
        for word, begin, end in zip(words, begins, begins[1:])
    )
