"""What stands between waveforms and an encoder: the inputs of a batch, and which frames are real."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad.errors import UserError
from pad.students.layout import FrameLayout


class SpeechInputs(NamedTuple):
    """inputs: what `encoder(**inputs)` takes; frame_mask: bool [B, M], the real ones of the frames that it gives."""

    inputs: dict[str, Tensor]
    frame_mask: Tensor


class FrontEnd(ABC):
    """The inputs of one family of encoders, from waveforms.

    extractor: transformers' feature extractor of the checkpoint, which is saved with it and from here on pads on the
    right; layout: when the frames are.
    """

    def __init__(self, extractor: Any, layout: FrameLayout):
        self.extractor, self.layout = extractor, layout
        # Real frames are the first ones (`frame_mask`), whatever side the checkpoint pads on.
        extractor.padding_side = "right"

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return self.extractor.sampling_rate

    def __call__(self, waveforms: Sequence[np.ndarray]) -> SpeechInputs:
        """Inputs and frame mask of waveforms [T] float32 at `sampling_rate`, on the CPU.

        Raises UserError for one that is shorter or longer than the encoder takes.
        """
        samples = torch.tensor([len(waveform) for waveform in waveforms])
        for count in samples.tolist():
            self.check_length(count)
        return self.inputs(waveforms, self.layout.frames(samples))

    @abstractmethod
    def inputs(self, waveforms: Sequence[np.ndarray], frames: Tensor) -> SpeechInputs:
        """The same for waveforms of lengths that the encoder takes; frames: how many each has, int64 [B]."""

    def check_length(self, samples: int) -> None:
        """Raise UserError unless the encoder takes an utterance of so many samples."""
        layout, rate = self.layout, self.sampling_rate
        if samples < layout.shortest:
            raise UserError(
                f"audio: got {samples} samples ({samples / rate:.3f} s), expected at least {layout.shortest}, one "
                "frame of the student"
            )
        if layout.longest is not None and samples >= layout.longest + layout.hop:
            raise UserError(
                f"audio: got {samples / rate:.2f} s, expected at most {layout.longest / rate:g} s: the student has "
                "positions for no more"
            )

    def isolated(self, encoder: Any) -> FrontEnd:
        """A front end with which no state of an utterance depends on its batch; may change parts of the encoder."""
        return self


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Bool [B, frames]: True at the real frames, which are the first lengths [B] ones."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def masked_inputs(name: str, rows: Sequence[Tensor], frames: Tensor) -> SpeechInputs:
    """Rows [T] or [T, bands] of a batch, filled up with 0, as the input `name` with the mask of what is real.

    frames: how many the encoder makes of each row, int64 [B].
    """
    mask = frame_mask(torch.tensor([len(row) for row in rows]), max(map(len, rows)))
    inputs = {name: pad_sequence(list(rows), batch_first=True), "attention_mask": mask.long()}
    return SpeechInputs(inputs, frame_mask(frames, int(frames.max())))
