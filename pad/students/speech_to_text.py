"""Speech2Text's encoder: filter-bank features, and convolutions that each halve their rate.

transformers' own forward lets the last frames of an utterance see the padding of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Speech2TextFeatureExtractor
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.speech_to_text import modeling_speech_to_text

from pad.students.front_end import FrontEnd, SpeechInputs, frame_mask, masked_inputs
from pad.students.layout import HalvingLayout
from pad.students.student import Student, encoder_in, run_layers

CLASSES = ("Speech2TextForConditionalGeneration", "Speech2TextModel")


def default_feature_extractor(config) -> Speech2TextFeatureExtractor:
    """For a student saved without one: 16 kHz, filter-bank features of 10 ms, normalized by utterance."""
    bands = config.input_feat_per_channel
    return Speech2TextFeatureExtractor(feature_size=bands, num_mel_bins=bands)


def student_of(model: PreTrainedModel, extractor: Speech2TextFeatureExtractor, files: dict[str, bytes]) -> Student:
    """The encoder of a Speech2Text model, as a student; the model itself is what the student saves."""
    encoder, prefix = encoder_in(model)
    front_end = FilterBankFrontEnd(extractor, HalvingLayout(encoder.conv.num_layers))
    speech = Speech2TextSpeechEncoder(encoder)
    return Student(speech, front_end, len(encoder.layers), [encoder.conv], model, prefix, files)


class FilterBankFrontEnd(FrontEnd):
    """Filter-bank features of each utterance by itself, with their mask."""

    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        # A band that does not vary is 0 / 0 once normalized: its features are as its mean.
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = [
                torch.nan_to_num(torch.from_numpy(
                    self.extractor(waveform, sampling_rate=self.sampling_rate)["input_features"][0]
                ), posinf=0.0, neginf=0.0)
                for waveform in waveforms
            ]  # fmt: skip
        return masked_inputs("input_features", rows, frames)


class Speech2TextSpeechEncoder(modeling_speech_to_text.Speech2TextPreTrainedModel):
    """The parts of a Speech2TextEncoder, run so that no utterance depends on its batch; layers are never dropped."""

    def __init__(self, encoder: modeling_speech_to_text.Speech2TextEncoder):
        super().__init__(encoder.config)
        self.encoder = encoder

    def forward(
        self, input_features: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        """States of features [B, T, bands]; attention_mask: [B, T], the real features."""
        encoder = self.encoder
        lengths = attention_mask.sum(dim=1)
        hidden = input_features.transpose(1, 2)
        for convolution in encoder.conv.conv_layers:
            hidden = nn.functional.glu(convolution(hidden), dim=1)
            lengths = torch.div(lengths + 1, 2, rounding_mode="floor")
            real = frame_mask(lengths, hidden.shape[2])
            hidden = hidden * real[:, None]
        hidden = encoder.embed_scale * hidden.transpose(1, 2)
        hidden = hidden + encoder.embed_positions(torch.zeros_like(real, dtype=torch.long))
        hidden = nn.functional.dropout(hidden, encoder.dropout, self.training)
        mask = create_bidirectional_mask(encoder.config, hidden, real.long())
        return run_layers(encoder, hidden, output_hidden_states, attention_mask=mask)
