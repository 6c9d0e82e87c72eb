"""Audio files: what they hold, against what they promise, and their samples."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from pad.data.containers import check_joined, check_log, check_mp3, check_ogg, is_told_by_header, stated_samples
from pad.data.entry import AudioSource
from pad.data.report import BadSample

AUDIO_SUFFIXES = (
    ".flac", ".wav", ".ogg", ".opus", ".mp3", ".oga", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ".sph",
)  # fmt: skip
# Audio that libsndfile does not read.
OTHER_AUDIO_SUFFIXES = (
    ".m4a", ".aac", ".mp4", ".m4b", ".webm", ".wma", ".mka", ".mkv", ".mov", ".3gp", ".amr", ".ac3", ".ape", ".wv",
    ".spx", ".ra", ".tta",
)  # fmt: skip

# Of libsndfile's names, those whose files tell how much they hold.
_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64", "NIST")
_UNKNOWN_LENGTH = 2**48  # samples; libsndfile gives a larger number where a header states none
_BLOCK = 1 << 20  # samples
# A decoder may leave out what a codec needs to begin and end.
_CODEC_SLACK = 3 * 1152
_LOWEST_RATE = 1000  # Hz
# Some programs store integers of up to 32 bits as floats; beyond them the square of a sample may overflow.
_LOUDEST = 2.0**31


def _unreadable(audio: object, error: BaseException) -> BadSample:
    # Without the name: it is that of a buffer.
    reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return BadSample(f"{audio}: not a readable audio file: {reason}", "unreadable audio")


def _read(opened: soundfile.SoundFile) -> np.ndarray:
    """[samples, channels] float32 up to the end, whatever length the header states."""
    blocks = [np.zeros((0, opened.channels), np.float32)]
    while len(block := opened.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    return np.concatenate(blocks)


def _read_stream(content: bytes) -> np.ndarray:
    """The same of an MP3 file that does not state its length: only from a pipe libsndfile reads to the end."""
    source, sink = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(sink, "wb") as file:
                file.write(content)
        except BrokenPipeError:  # no more is wanted
            pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with soundfile.SoundFile(source, closefd=False) as opened:
            return _read(opened)
    finally:
        os.close(source)
        feeder.join()


def _check_opened(audio: object, opened: soundfile.SoundFile) -> None:
    if opened.format not in _FORMATS:
        expected = ", ".join(_FORMATS)
        raise BadSample(f"{audio}: the format is {opened.format}; expected one of {expected}", "unreadable audio")
    if opened.samplerate < _LOWEST_RATE:
        raise BadSample(
            f"{audio}: a sampling rate of {opened.samplerate} Hz; expected at least {_LOWEST_RATE} Hz",
            "wrong sampling rate",
        )
    check_log(audio, opened.extra_info)


def _length(audio: object, opened: soundfile.SoundFile, content: bytes) -> tuple[int | None, bool]:
    """The number of samples that an audio file must give, None if nothing tells, and whether libsndfile knows it.

    Raises BadSample for a file that holds less or more than it promises.

    content: of the whole file, unless libsndfile's log tells enough.
    """
    _check_opened(audio, opened)
    check_joined(audio, content)
    frames = None
    if opened.format == "OGG":
        check_ogg(audio, content)
    elif opened.format == "MP3":
        frames = check_mp3(audio, content, opened.frames)
        if frames is None:
            return None, False
        if frames.promised is None:
            return frames.held * frames.samples_per_frame, False
    elif opened.format == "NIST":
        stated = stated_samples(content)
        if stated is not None and stated != opened.frames:
            raise _short(audio, opened.frames, stated)
    if opened.frames <= 0:
        raise BadSample(f"{audio}: the audio file is empty", "empty audio")
    if opened.frames >= _UNKNOWN_LENGTH:
        raise BadSample(f"{audio}: the header states no length; expected the number of samples", "unreadable audio")
    return opened.frames, True


def _short(audio: object, held: int, promised: int) -> BadSample:
    return BadSample(f"{audio}: the audio ends after {held} samples, its header promises {promised}", "truncated audio")


def _check_end(audio: object, opened: soundfile.SoundFile, length: int) -> None:
    """Raise BadSample unless the last samples of a file can be decoded."""
    last = min(length, 16)
    try:
        opened.seek(length - last)
        found = len(opened.read(last))
    except soundfile.SoundFileError:  # its reason is one of the decoder's search
        found = 0
    if found < last:
        raise BadSample(
            f"{audio}: the audio ends before the {length} samples that its header promises", "truncated audio"
        )


def _examine(audio: object, file: BinaryIO) -> tuple[float, int]:
    content = b"" if is_told_by_header(file.read(4)) else _rewound(file).read()
    with soundfile.SoundFile(_rewound(file)) as opened:
        rate, (length, known) = opened.samplerate, _length(audio, opened, content)
        if length is None:
            length = len(_decode(opened, content, known))
        elif known:
            _check_end(audio, opened, length)
    if length == 0:
        raise BadSample(f"{audio}: the audio file is empty", "empty audio")
    return length / rate, rate


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _decode(opened: soundfile.SoundFile, content: bytes, known: bool) -> np.ndarray:
    """All samples of an open file; known: whether libsndfile knows how many."""
    return _read(opened) if known else _read_stream(content)


def check_audio(audio: str | Path | AudioSource) -> tuple[float, int]:
    """(duration in seconds, sampling rate in Hz) of an audio file that holds what it promises; raises BadSample.

    Its headers, their sizes and its end are looked at; what lies between is decoded by `read_audio` alone.
    """
    try:
        if isinstance(audio, (str, Path)):
            with open(audio, "rb") as file:
                return _examine(audio, file)
        return _examine(audio, io.BytesIO(audio.read()))
    except BadSample:
        raise
    except Exception as error:  # soundfile raises more than its own errors
        raise _unreadable(audio, error) from error


def read_audio(audio: str | Path | AudioSource, sampling_rate: int = 16000) -> np.ndarray:
    """The samples of an audio file as float32 in [-1, 1], channels averaged, at sampling_rate (Hz).

    Raises BadSample (a UserError) if it cannot be decoded to the end, holds less or more than its header promises, or
    holds NaN, infinite or huge samples.
    """
    try:
        content = Path(audio).read_bytes() if isinstance(audio, (str, Path)) else audio.read()
        with soundfile.SoundFile(io.BytesIO(content)) as opened:
            rate, (length, known) = opened.samplerate, _length(audio, opened, content)
            slack = _CODEC_SLACK if opened.format in ("MP3", "OGG") else 0
            samples = _decode(opened, content, known)
        if length is not None and len(samples) < length - slack:
            raise _short(audio, len(samples), length)
        loudest = np.maximum(samples.max(initial=0), -samples.min(initial=0))
        if not np.isfinite(loudest):
            raise BadSample(f"{audio}: the audio holds NaN or infinite samples", "NaN or infinite samples")
        if loudest > _LOUDEST:
            raise BadSample(
                f"{audio}: the audio holds a sample of size {loudest:.3g}; expected samples from -1 to 1",
                "huge samples",
            )
        mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
        return mono if rate == sampling_rate else soxr.resample(mono, rate, sampling_rate)
    except BadSample:
        raise
    except Exception as error:  # soundfile and soxr raise more than their own errors
        raise _unreadable(audio, error) from error
