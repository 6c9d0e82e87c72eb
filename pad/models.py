"""Loads the two models, and tells how a student's frames lie in time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer, Wav2Vec2FeatureExtractor

from pad.errors import UserError


@dataclass(frozen=True)
class FrameLayout:
    """How the convolutions of a wav2vec 2.0-like encoder cut samples into frames."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, config) -> FrameLayout:
        """Read it from a transformers config; raises UserError if the model has no such convolutions."""
        kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
        if not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
            raise UserError(
                f"student: a model of type {config.model_type!r} has no conv_kernel, conv_stride; expected "
                "an encoder of waveforms such as wav2vec 2.0, HuBERT or WavLM"
            )
        if getattr(config, "add_adapter", False):
            raise UserError(
                "student: a model with an adapter (add_adapter) changes its frame rate; not supported"
            )
        return cls(tuple(kernels), tuple(strides))

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees: the shortest input that gives a frame."""
        width, hop = 1, 1
        for kernel, stride in zip(self.kernels, self.strides):
            width += (kernel - 1) * hop
            hop *= stride
        return width

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Number of frames [B] of inputs with so many real samples [B]."""
        for kernel, stride in zip(self.kernels, self.strides):
            samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
        return samples.clamp_min(0)

    def centres(self, frames: int) -> torch.Tensor:
        """The middle of each frame's receptive field, in samples: float64 [frames]."""
        return torch.arange(frames, dtype=torch.float64) * self.hop + self.receptive_field / 2


def _load(loader, name: str, role: str, **options):
    try:
        return loader.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()
        raise UserError(f"{role}: cannot load {name!r}: {reason}") from error


def load_student(name: str):
    """(model, feature extractor) of a waveform encoder: a checkpoint folder or hub name; float32."""
    model = _load(AutoModel, name, "student").float()
    FrameLayout.of(model.config)
    if (Path(name) / "preprocessor_config.json").is_file() or not Path(name).is_dir():
        extractor = _load(AutoFeatureExtractor, name, "student")
    else:
        extractor = default_feature_extractor(model.config)
    return model, extractor


def default_feature_extractor(config) -> Wav2Vec2FeatureExtractor:
    """For a student saved without one: 16 kHz, normalised; a mask only for layer-normed convolutions."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=16000,
        padding_value=0.0,
        do_normalize=True,
        return_attention_mask=getattr(config, "feat_extract_norm", "group") == "layer",
    )


def load_teacher(name: str):
    """(model, tokenizer) of a text encoder, frozen: evaluation mode, no gradients, float32."""
    model = _load(AutoModel, name, "teacher").float()
    tokenizer = _load(AutoTokenizer, name, "teacher")
    model.eval().requires_grad_(False)
    return model, tokenizer


def width(model: nn.Module) -> int:
    """Width D of a model's output."""
    return int(model.config.hidden_size)


def check_widths(student: nn.Module, teacher: nn.Module) -> None:
    """PAD adds no layer, so the two widths must agree; raises UserError that names both."""
    if width(student) != width(teacher):
        raise UserError(
            f"student and teacher differ in width: {width(student)} and {width(teacher)}; PAD adds no layer, "
            "so choose two models of one width, or --linear-map for a map between them, trained beside the student"
        )
