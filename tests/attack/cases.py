"""Seeded cases of every public op: sizes down to none, all dtypes and layouts, masks, priors and spans of every kind.

Whatever takes no part is NaN (integers have no such value).
"""

import random
from typing import NamedTuple

import torch
from inputs import KINDS, make_mask
from test_alignment import strided
from torch import Tensor

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("plain", "plain", "transposed", "channels_first", "sliced", "last_dimension")
VALUES = ("normal", "normal", "near", "scaled", "whole", "zeros", "equal")
TEMPERATURES = (0.0, 0.0, 0.02, 0.1, 0.5, 2.0, 1e-9)


class AlignmentCase(NamedTuple):
    """The arguments of pad_loss, or of align."""

    speech: Tensor
    text: Tensor
    speech_mask: Tensor | None
    text_mask: Tensor | None
    speech_prior: Tensor | None
    text_prior: Tensor | None
    level: str
    temperature: float
    spans: tuple[Tensor, Tensor] | None
    num_anchors: Tensor | int | None
    scales: tuple[float, ...]
    anchors: str
    reduction: str


class Draw:
    """What a seed draws; `eights`: widths that are multiples of 8, and small sizes, for the Triton interpreter."""

    def __init__(self, seed: int, eights: bool):
        self.random, self.eights = random.Random(seed), eights
        self.generator = torch.Generator().manual_seed(seed)

    def size(self, most: int, none: float = 0.02) -> int:
        """Mostly small, sometimes large, rarely none."""
        if self.random.random() < none:
            return 0
        return self.random.randint(1, most if self.random.random() < 0.15 else max(most // 4, 1))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def mask(self, batch: int, length: int) -> Tensor | None:
        """bool, integers of some kind, or None."""
        kind = self.random.choice(("none", *KINDS))
        if kind == "none" or not batch or not length:
            return None
        found = make_mask(kind, batch, length, self.generator)
        return found.to(self.random.choice((torch.bool, torch.bool, torch.int64, torch.int32, torch.uint8)))

    def prior(self, batch: int, length: int, mask: Tensor | None) -> Tensor | None:
        """Any scale, with zeros and ties; NaN where masked."""
        kind = self.random.choice(("none", "plain", "zeros", "ties", "scaled"))
        if kind == "none":
            return None
        found = self.uniform(batch, length) + 0.01
        if kind == "zeros":
            found = found * (self.uniform(batch, length) < 0.6)
        if kind == "ties":
            found = torch.randint(0, 4, (batch, length), generator=self.generator) / 4
        if kind == "scaled":
            found = found * 10.0 ** self.random.randint(-25, 25)
        dtype = self.random.choice((torch.float32, torch.float64, torch.float16))
        found = found.to(torch.float32 if kind == "scaled" else dtype)
        return found if mask is None else found.masked_fill(mask == 0, torch.nan)

    def embeddings(self, batch: int, frames: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
        kind = self.random.choice(VALUES)
        speech, text = self.normal(batch, frames, width), self.normal(batch, tokens, width)
        if kind == "near" and tokens:
            place = torch.arange(frames) * tokens // max(frames, 1)
            speech = text[:, place] * (0.5 + self.uniform(batch, frames, 1)) + 1e-4 * speech
        if kind == "scaled":
            speech = speech * 10.0 ** self.random.randint(-3, 3)
            text = text * 10.0 ** (2 * self.uniform(batch, tokens, 1) - 1)
        if kind == "whole":
            speech, text = speech.round(), text.round()
        if kind == "zeros":
            speech, text = (x * (self.uniform(*x.shape[:2], 1) < 0.7) for x in (speech, text))
        if kind == "equal" and frames:
            speech = speech[:, torch.randint(0, frames, (frames,), generator=self.generator) // 3]
        return speech, text

    def laid_out(self, value: Tensor) -> Tensor:
        how = self.random.choice(LAYOUTS)
        return value if how == "plain" or not value.numel() else strided(value, how)


def alignment(seed: int, eights: bool = False, for_loss: bool = True) -> AlignmentCase:
    """A case of pad_loss, or of align."""
    draw = Draw(seed, eights)
    few = 2 if eights else 1
    batch, frames, tokens = draw.size(8 // few), draw.size(160 // few), draw.size(70 // few)
    width = max(draw.size(220 // few, none=0), 1)
    width = width + -width % 8 if eights else width
    dtype = draw.random.choice([dtype for dtype in DTYPES if not eights or dtype != torch.float64])
    speech, text = (x.to(dtype) for x in draw.embeddings(batch, frames, tokens, width))
    speech_mask, text_mask = draw.mask(batch, frames), draw.mask(batch, tokens)
    speech_prior, text_prior = draw.prior(batch, frames, speech_mask), draw.prior(batch, tokens, text_mask)
    for values, mask, prior in ((speech, speech_mask, speech_prior), (text, text_mask, text_prior)):
        if mask is not None:
            values[mask == 0] = torch.nan
        if prior is not None and (for_loss or values is speech):
            values[prior == 0] = torch.nan
    level = draw.random.choice(("global", "token", "span", "span"))
    spans = None
    if draw.random.random() < 0.5 and level == "span":
        shape = (batch, draw.size(90 // few))
        start = torch.randint(0, frames + 1, shape, generator=draw.generator)
        length = torch.randint(0, 12, shape, generator=draw.generator)
        spans = start, (start + length).clamp(max=frames)
        spans = tuple(x.to(draw.random.choice((torch.int32, torch.int64))) for x in spans)
    wanted: Tensor | int | None = draw.random.choice((None, None, draw.size(30)))
    if draw.random.random() < 0.2:
        wanted = torch.randint(0, 20, (batch,), generator=draw.generator)
    return AlignmentCase(
        draw.laid_out(speech), draw.laid_out(text), speech_mask, text_mask, speech_prior,
        text_prior if for_loss else None, level, draw.random.choice(TEMPERATURES), spans, wanted,
        draw.random.choice(((0.5, 1, 2), (1.0,), (0.3, 2.5), (3, 1, 0.1, 1))),
        draw.random.choice(("topk", "peaks", "stride")), draw.random.choice(("mean", "mean", "sum", "none")),
    )  # fmt: skip


class SignificanceCase(NamedTuple):
    """The arguments of significance; whether its log-sum-exp is given, and in which dtype."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float | None
    lse_dtype: torch.dtype | None


def significance(seed: int, eights: bool = False) -> SignificanceCase:
    """Scores from very small to 1e9."""
    draw = Draw(seed, eights)
    few = 2 if eights else 1
    batch, heads, length = draw.size(6 // few), max(draw.size(8 // few, none=0), 1), draw.size(220 // few)
    width = max(draw.size(160 // few, none=0), 1)
    width = max(width, 16) if eights else width
    dtype = draw.random.choice([dtype for dtype in DTYPES if not eights or dtype != torch.float64])
    query, key = (draw.normal(batch, heads, length, width).to(dtype) for _ in range(2))
    mask = draw.mask(batch, length)
    if mask is not None:
        query, key = (x.masked_fill((mask == 0)[:, None, :, None], torch.nan) for x in (query, key))
    if draw.random.random() < 0.4 and query.numel():  # as attention layers have them
        query, key = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key))
    scale = draw.random.choice((None, None, 0.3, -0.1, 1e-6, 10.0 ** draw.random.randint(0, 9) / width))
    return SignificanceCase(query, key, mask, scale, draw.random.choice((None, torch.float32, torch.float64)))


class SpansCase(NamedTuple):
    """The arguments of select_spans."""

    prior: Tensor | None
    mask: Tensor | None
    num_tokens: Tensor | int
    num_anchors: Tensor | int | None
    scales: tuple[float, ...]
    anchors: str
    xi: Tensor | float | None
    max_anchors: int | None


def select_spans(seed: int, eights: bool = False) -> SpansCase:
    """Priors with ties and zeros, counts of every form."""
    draw = Draw(seed, eights)
    batch, frames = draw.size(8), draw.size(120 if eights else 400)
    mask = draw.mask(batch, frames)
    prior = draw.prior(batch, frames, mask)
    if eights and prior is not None:
        prior = prior.float()
    if prior is None and mask is None:
        mask = torch.ones(batch, frames, dtype=torch.bool)
    counts = [torch.randint(0, 25, (batch,), generator=draw.generator) for _ in range(2)]
    num_tokens = draw.random.choice((draw.size(25), counts[0], counts[0].to(torch.int32)))
    wanted = draw.random.choice((None, draw.size(25), counts[1]))
    xi = draw.random.choice((None, None, 3.7, 0.0, 4 * draw.uniform(batch), 9 * draw.uniform(batch).double()))
    scales = draw.random.choice(((0.5, 1, 2), (1.0,), (0.3, 2.5)))
    anchors = draw.random.choice(("topk", "peaks", "stride"))
    return SpansCase(prior, mask, num_tokens, wanted, scales, anchors, xi, draw.random.choice((None, None, 25, 30)))
