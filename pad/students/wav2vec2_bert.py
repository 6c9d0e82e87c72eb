"""w2v-BERT 2.0: filter-bank features, two of them to a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor

from pad.errors import UserError
from pad.students.front_end import FrontEnd, SpeechInputs, masked_inputs
from pad.students.layout import ConvolutionLayout
from pad.students.student import Student

CLASSES = ("Wav2Vec2BertModel",)
# Features see 400 samples and are 160 apart.
_LAYOUT = ConvolutionLayout((560,), (320,))


def default_feature_extractor(config) -> SeamlessM4TFeatureExtractor:
    """For a student saved without one: 16 kHz, filter-bank features of 10 ms, normalized by utterance."""
    return SeamlessM4TFeatureExtractor()


def student_of(model, extractor: SeamlessM4TFeatureExtractor, files: dict[str, bytes]) -> Student:
    """A w2v-BERT model as a student; raises UserError for one whose adapter changes the frame rate."""
    if model.config.add_adapter:
        raise UserError("student: a model with an adapter (add_adapter) changes the frame rate, which is not supported")
    front_end = StackedFilterBankFrontEnd(extractor, _LAYOUT)
    return Student(model, front_end, model.config.num_hidden_layers, [model.feature_projection], files=files)


class StackedFilterBankFrontEnd(FrontEnd):
    """Pairs of filter-bank features of each utterance by itself, with the mask of the whole pairs."""

    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        rows = [
            self.extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")["input_features"][0, :count]
            for waveform, count in zip(waveforms, frames.tolist())
        ]
        return masked_inputs("input_features", rows, frames)
