"""Settings of `pad align`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad.settings import Settings


@dataclass
class AlignConfig(Settings):
    """Draw how one utterance's speech and text align: log-mel, priors, spans, alignment matrix."""

    student: str
    """speech encoder: a transformers checkpoint folder or hub name"""
    teacher: str
    """text encoder: a transformers checkpoint folder or hub name"""
    audio: str
    """audio file of the utterance"""
    transcript: str = ""
    """what is said; empty: read from the .txt beside the audio"""
    words: str | None = None
    """file of lines 'start, end, word' (tabs, seconds): true word times to draw"""
    linear_map: str | None = None
    """map.safetensors that distill --linear-map has saved, for models of two widths"""
    teacher_layer: int = -1
    """hidden state of the teacher that is its token embeddings, as in distill"""
    teacher_mean: str | None = None
    """teacher_mean.safetensors that distill --center-teacher has saved, to be subtracted from the embeddings"""
    output: str = "alignment"
    """path of the pictures; .png and .svg are added"""
    preset: str = "pad-slocal-soft"
    """objective whose units and priors are drawn"""
    temperature: float | None = None
    """of the soft alignment; None: the preset's"""

    def check(self) -> None:
        """Raise UserError for a value that makes no sense, by its name."""
        self.expect("output", Path(self.output).name, "the path of a file")
        self.expect("temperature", self.temperature is None or self.temperature >= 0, "0 or more")
