"""Loading of the two models, and the timing of a student's frames."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import AutoModel, PreTrainedModel, Wav2Vec2FeatureExtractor

from pad.errors import UserError
from pad.loading_checks import SavedFeatureExtractor, TextEncoder, WholeModel
from pad.progress import say
from pad.settings import Settings


@dataclass(frozen=True)
class FrameLayout:
    """How the convolutions of an encoder such as wav2vec 2.0 divide samples into frames."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, config) -> FrameLayout:
        """Read it from a transformers config; raises UserError if the model has no such convolutions."""
        kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
        if not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
            raise UserError(
                f"student: a model of type {config.model_type!r} has no conv_kernel and conv_stride; expected "
                "an encoder of waveforms such as wav2vec 2.0, HuBERT or WavLM"
            )
        if getattr(config, "add_adapter", False):
            raise UserError(
                "student: a model with an adapter (add_adapter) changes the frame rate, which is not supported"
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
        """Number of frames [B] for numbers of samples [B]."""
        for kernel, stride in zip(self.kernels, self.strides):
            samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
        return samples.clamp_min(0)

    def centres(self, frames: int) -> torch.Tensor:
        """The middle of each frame's receptive field, in samples: float64 [frames]."""
        return torch.arange(frames, dtype=torch.float64) * self.hop + self.receptive_field / 2


def _load(loader, name: str, role: str):
    where = ""
    try:
        if not Path(name).is_dir():
            where = "no such folder here; on huggingface.co: "
            _reach_hub(name)
        return loader.from_pretrained(name)
    except Exception as error:  # whatever files that are not of a model make transformers raise
        reason = re.sub(r"\s+", " ", str(error)).strip()
        raise UserError(f"{role}: cannot load {name!r}: {where}{reason}") from error


def _reach_hub(name: str) -> None:
    """Raise at once what transformers raises after many attempts: the model or the hub cannot be reached."""
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        HfApi().model_info(name, timeout=10)


def load_student(name: str):
    """(model, feature extractor) of a waveform encoder: a checkpoint folder or hub name; float32."""
    model = _load(WholeModel(AutoModel), name, "student").float()
    FrameLayout.of(model.config)
    extractor = _load(SavedFeatureExtractor, name, "student")
    if extractor is not None:
        return model, extractor
    extractor = default_feature_extractor(model.config)
    mask = "with" if extractor.return_attention_mask else "without"
    say(f"{name}: no feature extractor there; assumed: {extractor.sampling_rate} Hz, normalised, {mask} a mask")
    return model, extractor


def default_feature_extractor(config) -> Wav2Vec2FeatureExtractor:
    """For a student saved without one: 16 kHz, normalised, with a mask only if its convolutions use layer norm."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=16000,
        padding_value=0.0,
        do_normalize=True,
        return_attention_mask=getattr(config, "feat_extract_norm", "group") == "layer",
    )


def load_teacher(name: str):
    """(model, tokenizer) of a text encoder, frozen: evaluation mode, no gradients, float32."""
    model, tokenizer = _load(TextEncoder, name, "teacher")
    model = model.float()
    # Where the files are missing, transformers makes a tokenizer of little more than the special tokens.
    if len(tokenizer) - len(tokenizer.all_special_ids) < 3:
        raise UserError(f"teacher: no tokenizer in {name!r}, only a model; expected the files of both")
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise UserError(
            f"teacher: the tokenizer of {name!r} has {len(tokenizer)} tokens, its model embeds {embeddings}; expected "
            "no more than that"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions(model))
    model.eval().requires_grad_(False)
    return model, tokenizer


def positions(model: PreTrainedModel) -> int:
    """The number of tokens that a text encoder has positions for."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        # RoBERTa counts its positions from after the padding's.
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def width(model: PreTrainedModel) -> int:
    """Width D of a model's output."""
    return int(model.config.hidden_size)


def check_teacher_layer(settings: Settings, layer: int, teacher: PreTrainedModel) -> None:
    """Raise UserError unless `layer`, the setting teacher_layer, is a hidden state of the teacher."""
    depth = teacher.config.num_hidden_layers
    expected = f"a hidden state of the teacher, from {-depth - 1} to {depth}"
    settings.expect("teacher_layer", -depth - 1 <= layer <= depth, expected)


def check_widths(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """PAD adds no layer, so the two widths must agree; raises UserError that names both."""
    if width(student) != width(teacher):
        raise UserError(
            f"student and teacher have different widths: {width(student)} and {width(teacher)}; PAD adds no layer, "
            "so use two models of the same width, or --linear-map to train a map between them as well"
        )
