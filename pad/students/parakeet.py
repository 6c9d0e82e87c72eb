"""Parakeet's encoder: log-mel features, convolutions that each halve their rate, and conformer layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn
from transformers import ParakeetFeatureExtractor, PreTrainedModel
from transformers.models.parakeet import modeling_parakeet

from pad.students.front_end import FrontEnd, SpeechInputs, masked_inputs
from pad.students.layout import HalvingLayout
from pad.students.student import Student, encoder_in

CLASSES = ("ParakeetForCTC", "ParakeetForTDT", "ParakeetForRNNT")


def default_feature_extractor(config) -> ParakeetFeatureExtractor:
    """For a student saved without one: 16 kHz, log-mel features of 10 ms, normalized by utterance."""
    return ParakeetFeatureExtractor(feature_size=config.encoder_config.num_mel_bins)


def student_of(model: PreTrainedModel, extractor: ParakeetFeatureExtractor, files: dict[str, bytes]) -> Student:
    """The encoder of a Parakeet model, as a student; the model itself is what the student saves."""
    encoder, prefix = encoder_in(model)
    # Two features at least: one has no variance to be normalized by.
    layout = HalvingLayout(encoder.subsampling.num_layers, window=160, center=0, shortest=320)
    speech = ParakeetSpeechEncoder(encoder)
    front_end = ParakeetFrontEnd(extractor, layout)
    return Student(speech, front_end, len(encoder.layers), [encoder.subsampling], model, prefix, files)


class ParakeetFrontEnd(FrontEnd):
    """Log-mel features of each utterance by itself, with their mask."""

    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        rows = []
        for waveform in waveforms:
            found = self.extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")
            rows.append(found["input_features"][0, : int(found["attention_mask"].sum())])
        return masked_inputs("input_features", rows, frames)


class ParakeetSpeechEncoder(modeling_parakeet.ParakeetPreTrainedModel):
    """A ParakeetEncoder whose batch norms keep their statistics in training, so that utterances do not mix (ours)."""

    def __init__(self, encoder: modeling_parakeet.ParakeetEncoder):
        super().__init__(encoder.config)
        self.encoder = encoder

    def train(self, mode: bool = True) -> ParakeetSpeechEncoder:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def forward(self, input_features: Tensor, attention_mask: Tensor, output_hidden_states: bool = False):
        """States of features [B, T, bands]; attention_mask: [B, T], the real features."""
        return self.encoder(input_features, attention_mask, output_hidden_states=output_hidden_states)
