"""What is predicted: the calls, and what each is given."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.cases import DTYPES, TEMPERATURES, seeded_batch

LOSSES = ("token hard", "token soft", "span hard", "span soft", "global")


class Shape(NamedTuple):
    """Of a loss: utterances, frames, tokens, width; of the significance prior: utterances, heads, frames, width."""

    batch: int
    frames: int
    tokens: int
    width: int


SHAPES = {
    "gpu": Shape(32, 750, 48, 768),
    "gpu-long": Shape(8, 1500, 128, 1024),
    "gpu-many": Shape(128, 250, 24, 768),
}
SMALL = "small"  # of tests
SIGNIFICANCE = (32, 12, 750, 64)


@dataclass(frozen=True)
class Call:
    """One call that a user makes: a loss, forward or forward and backward, or the significance prior."""

    name: str
    size: str
    dtype: str
    backward: bool = False

    @property
    def level(self) -> str:
        return self.name.split()[0]

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.name.partition(" ")[2], 0.0)

    @property
    def shape(self) -> tuple[int, ...]:
        return SIGNIFICANCE if self.level == "significance" else (SHAPES | {SMALL: Shape(4, 96, 8, 64)})[self.size]

    @property
    def label(self) -> str:
        return self.name if self.level == "significance" else f"{self.name} {self.direction}"

    @property
    def direction(self) -> str:
        return "forward+backward" if self.backward else "forward"


def all_calls(sizes=tuple(SHAPES), dtypes=("bfloat16", "float32")) -> list[Call]:
    """Every call of the table."""
    calls = [Call(name, size, dtype, backward) for size in sizes for dtype in dtypes for name in LOSSES
             for backward in (False, True)]  # fmt: skip
    return calls + [Call("significance", "gpu", dtype) for dtype in dtypes]


class Arguments(NamedTuple):
    """The tensors of a call of a loss."""

    speech: torch.Tensor
    text: torch.Tensor
    speech_mask: torch.Tensor
    text_mask: torch.Tensor
    speech_prior: torch.Tensor
    text_prior: torch.Tensor


def make_arguments(call: Call, batch: int, device: str, width: int | None = None) -> Arguments:
    """Seeded tensors of a call with so many utterances, 40 to 100 % of each real; without values on "meta"."""
    _, frames, tokens, own_width = call.shape
    width = width or own_width
    dtype = DTYPES[call.dtype]
    if device == "meta":
        sizes = (frames, tokens)
        return Arguments(
            *(torch.empty(batch, size, width, dtype=dtype, device=device) for size in sizes),
            *(torch.empty(batch, size, dtype=torch.bool, device=device) for size in sizes),
            *(torch.empty(batch, size, device=device) for size in sizes),
        )
    return Arguments(*seeded_batch(batch, frames, tokens, width, dtype))
