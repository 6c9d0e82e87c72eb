"""Audio files: their headers and their samples."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr

from pad.data.entry import AudioSource
from pad.data.report import BadSample

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


def _unreadable(audio, error: Exception) -> BadSample:
    return BadSample(f"{audio}: not a readable audio file: {error}", "unreadable audio")


def _open(audio: str | Path | AudioSource) -> soundfile.SoundFile:
    try:
        opened = soundfile.SoundFile(audio if isinstance(audio, (str, Path)) else io.BytesIO(audio.read()))
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(audio, error) from error
    if opened.frames <= 0:
        opened.close()
        raise BadSample(f"{audio}: the audio file is empty", "empty audio")
    return opened


def _check_riff(path: str | Path) -> None:
    """Raise BadSample if a wav file is shorter than its header says; libsndfile reads what there is."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = os.fstat(file.fileno()).st_size
    promised = int.from_bytes(start[4:8], "little") + 8
    # Programs that write to a pipe state 2 or 4 GB.
    if start[:4] == b"RIFF" and length < 0.95 * promised and promised < 2**31 - 2**16:
        raise BadSample(
            f"{path}: the audio file ends after {length} bytes, its header promises {promised}", "truncated audio"
        )


def read_header(audio: str | Path | AudioSource) -> tuple[float, int]:
    """(duration in seconds, sampling rate in Hz) as the header states them; raises BadSample."""
    with _open(audio) as opened:
        if opened.format == "WAV" and isinstance(audio, (str, Path)):
            _check_riff(audio)
        return opened.frames / opened.samplerate, opened.samplerate


def read_audio(audio: str | Path | AudioSource, sampling_rate: int = 16000) -> np.ndarray:
    """The samples of an audio file as float32 in [-1, 1], channels averaged, at sampling_rate (Hz).

    Raises BadSample (a UserError) if it cannot be decoded to the end or holds NaN or infinite samples.
    """
    with _open(audio) as opened:
        try:
            samples = opened.read(dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise _unreadable(audio, error) from error
        # Not exact: the header of an MP3 file may hold an estimate.
        if len(samples) < 0.95 * opened.frames:
            raise BadSample(
                f"{audio}: the audio ends after {len(samples)} samples, its header promises {opened.frames}",
                "truncated audio",
            )
        rate = opened.samplerate
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise BadSample(f"{audio}: the audio holds NaN or infinite samples", "NaN or infinite samples")
    return mono if rate == sampling_rate else soxr.resample(mono, rate, sampling_rate)
