"""Settings of `pad align`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad.settings import Settings
from pad.step.settings import ObjectiveSettings


@dataclass
class _Required(Settings):
    """What has no default: in a class of its own, so that the help shows it first."""

    student: str
    """speech encoder: a transformers checkpoint folder or hub name"""
    teacher: str
    """text encoder: a transformers checkpoint folder or hub name"""
    audio: str
    """audio file of the utterance"""


@dataclass
class AlignConfig(ObjectiveSettings, _Required):
    """Draw how the speech and text of one utterance align: log-mel spectrogram, priors, spans, alignment matrix."""

    paths = ("student", "teacher", "audio", "words", "linear_map", "teacher_mean", "output")

    transcript: str = ""
    """transcript of the audio; empty: read the .txt file next to the audio"""
    words: str | None = None
    """file with true word times to draw, one word per line: start (s), tab, end (s), tab, word"""
    pad_to_max_length: bool = False
    """Whisper: fill the utterance up to 30 s with silence, as in pad distill"""
    linear_map: str | None = None
    """map.safetensors from pad distill --linear-map, for models of different widths"""
    teacher_layer: int = -1
    """hidden state of the teacher to use as token embeddings, as in pad distill"""
    teacher_mean: str | None = None
    """teacher_mean.safetensors from pad distill --center-teacher: subtracted from the teacher's embeddings"""
    lowercase: bool = False
    """give the teacher the transcript in lower case, as in pad distill"""
    output: str = "alignment"
    """path of the pictures, without the endings .png and .svg"""
    overwrite: bool = False
    """replace pictures that are there"""

    def check(self) -> None:
        """Raise UserError that names a setting whose value makes no sense."""
        super().check()
        self.expect("output", Path(self.output).name != "", "the path of a file")
