"""How an encoder divides samples into frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


class FrameLayout(ABC):
    """The timing of an encoder's frames, in samples.

    hop: from one frame to the next; shortest, longest: the fewest and the most samples that the encoder takes (None:
    any number).
    """

    hop: int
    shortest: int
    longest: int | None = None

    @abstractmethod
    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Number of frames [B] int64 for numbers of samples [B] int64."""

    @abstractmethod
    def centers(self, frames: int) -> torch.Tensor:
        """The middle of what each frame sees, in samples: float64 [frames]."""


@dataclass(frozen=True)
class ConvolutionLayout(FrameLayout):
    """Convolutions without padding, one after another, as in wav2vec 2.0: kernels and strides of each."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def hop(self) -> int:  # type: ignore[override]
        """Product of the strides."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    @property
    def shortest(self) -> int:  # type: ignore[override]
        """Samples that one frame sees."""
        width, hop = 1, 1
        for kernel, stride in zip(self.kernels, self.strides):
            width += (kernel - 1) * hop
            hop *= stride
        return width

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        for kernel, stride in zip(self.kernels, self.strides):
            samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
        return samples.clamp_min(0)

    def centers(self, frames: int) -> torch.Tensor:
        return torch.arange(frames, dtype=torch.float64) * self.hop + self.shortest / 2


@dataclass(frozen=True)
class WholeHopLayout(FrameLayout):
    """A frame for every `hop` whole samples; frame m looks at sample m * hop and as far to both sides of it."""

    hop: int
    longest: int | None = None

    @property
    def shortest(self) -> int:  # type: ignore[override]
        """One hop."""
        return self.hop

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.div(samples, self.hop, rounding_mode="floor").clamp_min(0)

    def centers(self, frames: int) -> torch.Tensor:
        return torch.arange(frames, dtype=torch.float64) * self.hop


@dataclass(frozen=True)
class HalvingLayout(FrameLayout):
    """Features 160 samples apart, whose rate each of some convolutions halves, rounding up.

    window: samples until the first feature is whole; center: the sample in the middle of the first feature.
    """

    halvings: int
    window: int = 400
    center: int = 200
    shortest: int = 400

    @property
    def hop(self) -> int:  # type: ignore[override]
        """Samples of a feature times the convolutions' strides."""
        return 160 << self.halvings

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        frames = torch.div(samples - self.window, 160, rounding_mode="floor") + 1
        for _ in range(self.halvings):
            frames = torch.div(frames + 1, 2, rounding_mode="floor")
        return frames.clamp_min(0)

    def centers(self, frames: int) -> torch.Tensor:
        return torch.arange(frames, dtype=torch.float64) * self.hop + self.center
