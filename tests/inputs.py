"""Seeded inputs of the alignment ops, with NaN wherever nothing may be read, and how results are compared."""

from typing import NamedTuple

import torch
from torch import Tensor

from pad_kernels.inputs import AlignmentInputs

KINDS = ("full", "ragged", "left", "holes", "zero_priors", "some_empty", "all_empty")


class Inputs(NamedTuple):
    """The tensors of AlignmentInputs."""

    speech: Tensor
    text: Tensor
    frame_weights: Tensor
    token_mask: Tensor
    start: Tensor | None
    end: Tensor | None

    def double(self) -> "Inputs":
        """The same values in float64, detached."""
        wide = [x.detach().double() if x is not None and x.is_floating_point() else x for x in self]
        return Inputs(*wide)

    def at(self, temperature: float) -> AlignmentInputs:
        """What the alignment takes."""
        return AlignmentInputs(*self, temperature)


def make_mask(kind: str, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """[batch, length] bool: which positions are real."""
    mask = torch.ones(batch, length, dtype=torch.bool)
    if kind in ("ragged", "left", "some_empty"):
        lengths = torch.randint(1, length + 1, (batch,), generator=generator)
        mask = torch.arange(length) < lengths[:, None]
    if kind == "left":
        mask = mask.flip(1)
    if kind == "holes":
        mask = torch.rand(batch, length, generator=generator) < 0.7
    if kind == "some_empty":
        mask[int(torch.randint(batch, (), generator=generator))] = False
    if kind == "all_empty":
        mask[:] = False
    return mask


def make_inputs(
    batch: int,
    frames: int,
    tokens: int,
    width: int,
    *,
    kind: str = "ragged",
    units: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Inputs of a kind; `units` random spans (some empty, many overlapping, unsorted), or None for frames."""
    generator = torch.Generator().manual_seed(seed)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    speech = torch.randn(batch, frames, width, generator=generator, dtype=torch.float64).to(dtype)
    text = torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    frame_weights = torch.rand(batch, frames, generator=generator) + 0.05
    # What the alignment of spans is told of a masked frame is -1.
    frame_weights = torch.where(make_mask(kind, batch, frames, generator), frame_weights, 0 if units is None else -1)
    if kind == "zero_priors":
        frame_weights = frame_weights * (torch.rand(batch, frames, generator=generator) < 0.6)
    token_mask = make_mask(kind, batch, tokens, generator)
    speech[frame_weights <= 0] = torch.nan
    text[~token_mask] = torch.nan
    start = end = None
    if units is not None:
        bounds = torch.randint(0, frames + 1, (2, batch, units), generator=generator)
        start = bounds.amin(0)
        lengths = torch.randint(0, 12, (batch, units), generator=generator)
        end = torch.minimum(start + lengths, torch.tensor(frames)).int()
        start = start.int()
    return Inputs(speech, text, frame_weights.to(accumulator), token_mask, start, end)


def misaligned(tensor: Tensor) -> Tensor:
    """The same values one element further on in memory than an allocation begins."""
    return (
        torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)[1:].view(tensor.shape).copy_(tensor)
    )


def strided(tensor: Tensor) -> Tensor:
    """The same values, every other one of an allocation."""
    return torch.stack([tensor, torch.full_like(tensor, 77)], -1)[..., 0]


def relative_error(value: Tensor, truth: Tensor) -> float:
    """||value - truth|| / ||truth||; 0 where both are exactly 0."""
    difference = (value.double() - truth.double()).norm().item()
    return difference / truth.double().norm().item() if difference else 0.0
