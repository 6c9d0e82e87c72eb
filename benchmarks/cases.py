"""What is measured: sizes, levels, modes, and the inputs of one case."""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from pad_kernels import select_spans

TEMPERATURES = {"hard": 0.0, "soft": 0.1}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Size(NamedTuple):
    """Padded shape of a batch: utterances, speech frames, text tokens, embedding width."""

    batch: int
    frames: int
    tokens: int
    width: int


SIZES = {
    "tiny": Size(2, 24, 4, 16),  # of a dry run
    "base": Size(16, 750, 48, 768),
    "small": Size(4, 250, 16, 768),
    "long": Size(4, 3000, 192, 768),
    "wide": Size(16, 750, 48, 1024),
    "gpu": Size(32, 750, 48, 768),
    "gpu-long": Size(8, 1500, 128, 1024),
    "gpu-many": Size(128, 250, 24, 768),
}


# One of the sizes at a time, the others as in the first: for `align_bench.py --sweep`.
SWEEP = {
    "M=750 N=48 D=768": Size(16, 750, 48, 768),
    **{f"M={frames}": Size(16, frames, 48, 768) for frames in (100, 300, 1500, 3000)},
    **{f"N={tokens}": Size(16, 750, tokens, 768) for tokens in (8, 24, 96, 256)},
    **{f"D={width}": Size(16, 750, 48, width) for width in (128, 256, 512, 1024)},
}
# Batches so small that the call itself takes most of the time: the sweep has them too, in a table of their own.
SMALL_BATCHES = {
    "M=100 N=12 D=256, 4 utterances": Size(4, 100, 12, 256),
    "M=20 N=5 D=32, 2 utterances": Size(2, 20, 5, 32),
}
SIZES |= SWEEP | SMALL_BATCHES


@dataclass(frozen=True)
class Case:
    """One cell of the benchmark; `mode` is empty at the global level, which has none."""

    size: str
    level: str
    mode: str
    direction: str
    dtype: str

    @property
    def shape(self) -> Size:
        return SIZES[self.size]

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.mode, 0.0)

    @property
    def backward(self) -> bool:
        return self.direction == "forward+backward"

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.level, self.mode, self.direction)))

    def as_dict(self) -> dict:
        return asdict(self) | {"shape": self.shape._asdict()}


class Inputs(NamedTuple):
    """The arguments every provider takes; `start` and `end` are the spans of the span level, else None."""

    speech: torch.Tensor
    text: torch.Tensor
    speech_mask: torch.Tensor
    text_mask: torch.Tensor
    speech_prior: torch.Tensor
    text_prior: torch.Tensor
    start: torch.Tensor | None
    end: torch.Tensor | None

    def double(self) -> "Inputs":
        """The same values in float64, for the reference."""
        wide = [x.double() if x is not None and x.is_floating_point() else x for x in self]
        return Inputs(*wide)


def ragged_mask(batch: int, length: int) -> torch.Tensor:
    """Mask [batch, length] of lengths spread evenly over 40-100 % of `length`, in a fixed shuffled order; of a single
    one 100 %."""
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(1))
    shares = torch.linspace(1.0 if batch == 1 else 0.4, 1.0, batch)[order]
    return torch.arange(length) < (shares * length).round().clamp(min=1)[:, None]


def seeded_batch(batch: int, frames: int, tokens: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Speech, text, and masks and priors of both, 40 to 100 % real: each token is spoken by a stretch of frames, both
    under noise."""
    generator = torch.Generator().manual_seed(0)
    speech_mask, text_mask = ragged_mask(batch, frames), ragged_mask(batch, tokens)
    text = torch.randn(batch, tokens, width, generator=generator)
    spoken = torch.arange(frames) * tokens // frames
    speech = 0.3 * text[:, spoken] + torch.randn(batch, frames, width, generator=generator)
    speech_prior = torch.rand(batch, frames, generator=generator) * speech_mask
    text_prior = torch.rand(batch, tokens, generator=generator) * text_mask
    return speech.to(dtype), text.to(dtype), speech_mask, text_mask, speech_prior, text_prior


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Seeded inputs of a case."""
    parts = seeded_batch(*case.shape, DTYPES[case.dtype])
    _, _, speech_mask, text_mask, speech_prior, _ = parts
    start = end = None
    if case.level == "span":
        start, end = select_spans(speech_prior, speech_mask, text_mask.sum(1))
    return Inputs(*(None if part is None else part.to(device) for part in (*parts, start, end)))
