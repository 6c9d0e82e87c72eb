"""wav2vec 2.0, HuBERT, WavLM, data2vec and others whose first layers are convolutions over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Wav2Vec2FeatureExtractor

from pad.errors import UserError, shown
from pad.students.front_end import FrontEnd, SpeechInputs, frame_mask
from pad.students.isolation import keep_utterances_apart
from pad.students.layout import ConvolutionLayout
from pad.students.student import Student


def convolution_layout(config) -> ConvolutionLayout:
    """Read it from a transformers config; raises UserError if the model has none, or impossible ones."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
        raise UserError(
            f"student: a model of type {config.model_type!r} has no conv_kernel and conv_stride; expected an encoder "
            "of speech such as wav2vec 2.0, HuBERT, WavLM or Whisper"
        )
    if getattr(config, "add_adapter", False):
        raise UserError("student: a model with an adapter (add_adapter) changes the frame rate, which is not supported")
    for name, values in (("conv_kernel", kernels), ("conv_stride", strides)):
        if len(values) != len(kernels) or not all(type(value) is int and value > 0 for value in values):
            raise UserError(
                f"student: its config has the {name} {shown(values)}; expected a whole number above 0 for each"
            )
    return ConvolutionLayout(tuple(kernels), tuple(strides))


def default_feature_extractor(config) -> Wav2Vec2FeatureExtractor:
    """For a student saved without one: 16 kHz, normalized, with a mask only if its convolutions use layer norm."""
    # data2vec has no such setting: its convolutions always use layer norm.
    assumed = "layer" if config.model_type == "data2vec-audio" else "group"
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=16000,
        padding_value=0.0,
        do_normalize=True,
        return_attention_mask=getattr(config, "feat_extract_norm", assumed) == "layer",
    )


def student_of(model: Any, extractor: Wav2Vec2FeatureExtractor, files: dict[str, bytes]) -> Student:
    """A model whose forward takes samples, as a student; raises UserError for one without convolutions."""
    front_end = WaveformFrontEnd(extractor, convolution_layout(model.config))
    keep_utterances_apart(model)
    return Student(model, front_end, model.config.num_hidden_layers, [model.feature_extractor], files=files)


class WaveformFrontEnd(FrontEnd):
    """Samples as they are, or normalized; with a mask of samples if the student was trained with one."""

    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        speech = self.extractor(
            list(waveforms), sampling_rate=self.sampling_rate, padding=True, return_tensors="pt"
        )  # fmt: skip
        return SpeechInputs(dict(speech), self._frame_mask(speech["input_values"], frames))

    def _frame_mask(self, padded: Tensor, frames: Tensor) -> Tensor:
        return frame_mask(frames, int(self.layout.frames(torch.tensor(padded.shape[1]))))

    def isolated(self, encoder: Any) -> FrontEnd:
        """Each utterance normalized by itself, always with a mask, and convolved without its padding."""
        rows = None
        if getattr(encoder.config, "feat_extract_norm", None) == "group":
            rows = encoder.feature_extractor = _RowByRow(encoder.feature_extractor)
        return _IsolatedWaveforms(self.extractor, self.layout, rows)


class _IsolatedWaveforms(WaveformFrontEnd):
    def __init__(self, extractor, layout, rows: _RowByRow | None):
        super().__init__(extractor, layout)
        self.rows = rows

    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        prepared = [
            self.extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")["input_values"][0]
            for waveform in waveforms
        ]
        samples = torch.tensor([len(row) for row in prepared])
        padded = pad_sequence(prepared, batch_first=True)
        if self.rows is not None:
            self.rows.lengths = samples.tolist()
        inputs = {"input_values": padded, "attention_mask": frame_mask(samples, padded.shape[1]).long()}
        return SpeechInputs(inputs, self._frame_mask(padded, frames))


class _RowByRow(nn.Module):
    """Runs convolutions on each row of a batch without its padding, because their group norm spans all of time."""

    def __init__(self, convolutions: nn.Module):
        super().__init__()
        self.convolutions = convolutions
        self.lengths: list[int] = []

    def forward(self, input_values: Tensor) -> Tensor:
        rows = [self.convolutions(row[None, :length])[0].T for row, length in zip(input_values, self.lengths)]
        return pad_sequence(rows, batch_first=True).transpose(1, 2)
