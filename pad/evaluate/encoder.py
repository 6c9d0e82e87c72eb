"""A frozen speech encoder. The hidden states of an utterance do not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from pad.errors import UserError
from pad.models import FrameLayout, load_student
from pad.step.collate import frame_mask


class _RowByRow(nn.Module):
    """Runs convolutions on each row of a batch without its padding, because their group norm spans all of time."""

    def __init__(self, convolutions: nn.Module):
        super().__init__()
        self.convolutions = convolutions
        self.lengths: list[int] = []

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        rows = [self.convolutions(row[None, :length])[0].T for row, length in zip(input_values, self.lengths)]
        return pad_sequence(rows, batch_first=True).transpose(1, 2)


class Encoder:
    """A checkpoint, frozen: evaluation mode, no gradients, float32, no dropped layers, no masks.

    role: the setting that names it, for messages. Raises UserError for a model that cannot be loaded, or whose hidden
    states do not fit SUPERB's heads.
    """

    def __init__(self, name: str, role: str, device: torch.device | str = "cpu"):
        try:
            self.model, self.extractor = load_student(name)
        except UserError as error:
            raise UserError(str(error).replace("student:", f"{role}:", 1)) from error
        self.name, self.role, self.device = name, role, torch.device(device)
        self.model.eval().requires_grad_(False)
        config = self.model.config
        self.layout = FrameLayout.of(config)
        self.layers, self.width = config.num_hidden_layers + 1, config.hidden_size
        self._convolutions = None
        if getattr(config, "feat_extract_norm", None) == "group":
            self._convolutions = self.model.feature_extractor = _RowByRow(self.model.feature_extractor)
        self.model.to(self.device)
        self([np.zeros(self.layout.receptive_field + 7 * self.layout.hop, dtype=np.float32)])  # checks its states

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return self.extractor.sampling_rate

    @property
    def shortest(self) -> float:
        """Seconds that one frame sees, plus one sample for resampled audio."""
        return (self.layout.receptive_field + 1) / self.sampling_rate

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B, layers, M, D] float32 and the numbers of real frames [B] int64, on the device.

        The states are the input of the first layer (after the feature projection and positions), the output
        of each layer but the last, and the encoder's output; zero at the padding.
        """
        prepared = [
            self.extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")["input_values"][0]
            for waveform in waveforms
        ]
        samples = torch.tensor([len(row) for row in prepared])
        inputs = pad_sequence(prepared, batch_first=True).to(self.device)
        mask = (torch.arange(inputs.shape[1]) < samples[:, None]).long().to(self.device)
        if self._convolutions is not None:
            self._convolutions.lengths = samples.tolist()
        outputs = self.model(inputs, attention_mask=mask, output_hidden_states=True)
        layers = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
        if len(layers) != self.layers:
            raise UserError(
                f"{self.role}: {self.name} gives {len(layers)} hidden states; expected {self.layers}, "
                "one before the first layer and one after each"
            )
        counts = sorted({state.shape[1] for state in layers})
        if len(counts) > 1:
            raise UserError(
                f"{self.role}: {self.name} gives hidden states of {' and '.join(map(str, counts))} frames for the "
                "same speech; expected as many in each layer, as of wav2vec 2.0, HuBERT or WavLM"
            )
        states = torch.stack(layers, dim=1).float()
        lengths = self.layout.frames(samples).to(self.device)
        real = frame_mask(lengths, states.shape[2])[:, None, :, None]
        return states.masked_fill_(~real, 0.0), lengths
