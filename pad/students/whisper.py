"""Whisper's encoder on speech of any length up to its positions, with a mask of frames.

transformers' own forward takes features of exactly 30 s and attends to the silence that fills them up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, WhisperFeatureExtractor
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper import modeling_whisper

from pad.students.front_end import FrontEnd, SpeechInputs, frame_mask
from pad.students.layout import WholeHopLayout
from pad.students.student import Student, encoder_in, run_layers

CLASSES = ("WhisperForConditionalGeneration", "WhisperModel", "WhisperForAudioClassification")
# conv2 halves the rate of the log-mel features.
_STRIDE = 2


def default_feature_extractor(config) -> WhisperFeatureExtractor:
    """For a student saved without one: 16 kHz, log-mel features of 10 ms."""
    return WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def student_of(
    model: PreTrainedModel, extractor: WhisperFeatureExtractor, files: dict[str, bytes], pad_to_max_length: bool = False
) -> Student:
    """The encoder of a Whisper model, as a student; the model itself is what the student saves.

    files: of the checkpoint, to be saved with it. pad_to_max_length: fill every utterance up to 30 s with silence,
    which is attended to, as Whisper was trained.
    """
    encoder, prefix = encoder_in(model)
    front_end = WhisperFrontEnd(extractor, model.config.max_source_positions, pad_to_max_length)
    convolutions = [encoder.conv1, encoder.conv2]
    encoder.embed_positions.requires_grad_(False)  # sinusoids, as they are made; a loaded model would train them
    return Student(WhisperSpeechEncoder(encoder), front_end, len(encoder.layers), convolutions, model, prefix, files)


class WhisperFrontEnd(FrontEnd):
    """Log-mel features of each utterance by itself; a frame is two of them, 20 ms, and must be whole."""

    def __init__(self, extractor: WhisperFeatureExtractor, positions: int, pad_to_max_length: bool = False):
        hop = _STRIDE * extractor.hop_length
        super().__init__(extractor, WholeHopLayout(hop, positions * hop))
        self.positions, self.pad_to_max_length = positions, pad_to_max_length

    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        if self.pad_to_max_length:
            features = torch.cat([self._features(waveform, "max_length") for waveform in waveforms])
            return SpeechInputs({"input_features": features}, frame_mask(frames, self.positions))
        rows = [
            self._features(waveform, "longest")[0, :, : _STRIDE * count].T
            for waveform, count in zip(waveforms, frames.tolist())
        ]
        # Zeros, which conv1 sees beyond the end of an utterance alone as well.
        features = pad_sequence(rows, batch_first=True).transpose(1, 2)
        mask = frame_mask(frames, int(frames.max()))
        return SpeechInputs({"input_features": features, "attention_mask": mask.long()}, mask)

    def _features(self, waveform: np.ndarray, padding: str) -> Tensor:
        """[1, bands, T]; the log-mel features are relative to the loudest, so each utterance is computed alone."""
        features = self.extractor(
            waveform, sampling_rate=self.sampling_rate, padding=padding, max_length=self.layout.longest,
            return_tensors="pt",
        )  # fmt: skip
        return features["input_features"]


class WhisperSpeechEncoder(modeling_whisper.WhisperPreTrainedModel):
    """The parts of a WhisperEncoder, run on as many frames as there are.

    Positions count from the first of the table; layers are never dropped.
    """

    def __init__(self, encoder: modeling_whisper.WhisperEncoder):
        super().__init__(encoder.config)
        self.encoder = encoder

    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        """States of log-mel features [B, bands, 2 M]; attention_mask: [B, M], the real frames, None for all."""
        encoder = self.encoder
        hidden = nn.functional.gelu(encoder.conv1(input_features))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = nn.functional.dropout(hidden, encoder.dropout, self.training)
        mask = create_bidirectional_mask(encoder.config, hidden, attention_mask)
        return run_layers(encoder, hidden, output_hidden_states, attention_mask=mask)
