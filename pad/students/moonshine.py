"""Moonshine's encoder: convolutions over samples with a group norm, of each utterance's own frames only.

transformers' own forward lets the padding of a batch into the group norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.moonshine import modeling_moonshine

from pad.students.front_end import FrontEnd, SpeechInputs, frame_mask, masked_inputs
from pad.students.layout import ConvolutionLayout
from pad.students.student import Student, encoder_in, run_layers

CLASSES = ("MoonshineForConditionalGeneration", "MoonshineModel")
_KERNELS, _STRIDES = (127, 7, 3), (64, 3, 2)


def default_feature_extractor(config) -> Wav2Vec2FeatureExtractor:
    """For a student saved without one: 16 kHz, not normalized, with a mask."""
    return Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=False, return_attention_mask=True)


def student_of(model: PreTrainedModel, extractor: Wav2Vec2FeatureExtractor, files: dict[str, bytes]) -> Student:
    """The encoder of a Moonshine model, as a student; the model itself is what the student saves."""
    encoder, prefix = encoder_in(model)
    front_end = MoonshineFrontEnd(extractor, ConvolutionLayout(_KERNELS, _STRIDES))
    convolutions = [encoder.conv1, encoder.groupnorm, encoder.conv2, encoder.conv3]
    return Student(MoonshineSpeechEncoder(encoder), front_end, len(encoder.layers), convolutions, model, prefix, files)


class MoonshineFrontEnd(FrontEnd):
    """Samples with their mask."""

    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        rows = [
            self.extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")["input_values"][0]
            for waveform in waveforms
        ]
        return masked_inputs("input_values", rows, frames)


class MoonshineSpeechEncoder(modeling_moonshine.MoonshinePreTrainedModel):
    """The parts of a MoonshineEncoder, run so that no utterance depends on the padding of its batch."""

    main_input_name = "input_values"

    def __init__(self, encoder: modeling_moonshine.MoonshineEncoder):
        super().__init__(encoder.config)
        self.encoder = encoder

    def forward(
        self, input_values: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        """States of samples [B, T]; attention_mask: [B, T], the real samples."""
        encoder = self.encoder
        samples = attention_mask.sum(dim=1)
        hidden = nn.functional.tanh(encoder.conv1(input_values[:, None]))
        hidden = _group_norm(hidden, ConvolutionLayout(_KERNELS[:1], _STRIDES[:1]).frames(samples), encoder.groupnorm)
        hidden = nn.functional.gelu(encoder.conv2(hidden))
        hidden = nn.functional.gelu(encoder.conv3(hidden)).transpose(1, 2)
        real = frame_mask(ConvolutionLayout(_KERNELS, _STRIDES).frames(samples), hidden.shape[1])
        mask = create_bidirectional_mask(encoder.config, hidden, real.long())
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotations = encoder.rotary_emb(hidden, position_ids=positions)
        return run_layers(
            encoder, hidden, output_hidden_states, attention_mask=mask, position_ids=positions,
            position_embeddings=rotations,
        )  # fmt: skip


def _group_norm(hidden: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm of one group, of [B, C, T], over the first lengths [B] positions only."""
    real = frame_mask(lengths, hidden.shape[2])[:, None]
    count = lengths[:, None, None] * hidden.shape[1]
    hidden = hidden.float()
    mean = (hidden * real).sum(dim=(1, 2), keepdim=True) / count
    variance = ((hidden - mean) * real).square().sum(dim=(1, 2), keepdim=True) / count
    normalized = (hidden - mean) * (variance + norm.eps).rsqrt()
    return normalized * norm.weight[:, None] + norm.bias[:, None]
