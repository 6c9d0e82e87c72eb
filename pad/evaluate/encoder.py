"""A frozen speech encoder. The hidden states of an utterance do not depend on its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from pad.errors import UserError
from pad.models import width
from pad.step.collate import to_device
from pad.students import load_student


class Encoder:
    """A checkpoint, frozen: evaluation mode, no gradients, float32, no dropped layers, no masks.

    role: the setting that names it, for messages. Raises UserError for a model that cannot be loaded, or whose hidden
    states do not fit SUPERB's heads.
    """

    def __init__(self, name: str, role: str, device: torch.device | str = "cpu", pad_to_max_length: bool = False):
        try:
            student = load_student(name, pad_to_max_length)
        except UserError as error:
            raise UserError(str(error).replace("student:", f"{role}:", 1)) from error
        self.name, self.role, self.device = name, role, torch.device(device)
        self.model = student.encoder.eval().requires_grad_(False)
        self.front_end = student.front_end.isolated(self.model)
        self.layout = self.front_end.layout
        self.layers, self.width = student.layers + 1, width(self.model)
        self.model.to(self.device)
        self([np.zeros(self.layout.shortest + 7 * self.layout.hop, dtype=np.float32)])  # checks its states

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return self.front_end.sampling_rate

    @property
    def shortest(self) -> float:
        """Seconds that one frame sees, plus one sample for resampled audio."""
        return (self.layout.shortest + 1) / self.sampling_rate

    @property
    def longest(self) -> float:
        """Seconds of audio that the encoder has positions for; infinite where it takes any number."""
        return math.inf if self.layout.longest is None else self.layout.longest / self.sampling_rate

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B, layers, M, D] float32 and the numbers of real frames [B] int64, on the device.

        The states are the input of the first layer (after the feature projection and positions), the output
        of each layer but the last, and the encoder's output; zero at the padding.
        """
        inputs, mask = self.front_end(waveforms)
        mask = mask.to(self.device)
        outputs = self.model(**to_device(inputs, self.device), output_hidden_states=True)
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
        return states.masked_fill_(~mask[:, None, :, None], 0.0), mask.sum(dim=1)
