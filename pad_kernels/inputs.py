"""What passes between the losses, the ops and the backends, by name.

B utterances of M frames, N tokens and U units, of width D.

"Opmath" is the dtype of sums, norms and softmax: float64 for float64 embeddings, else float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# The levels of the loss, and the op that is most of each.
OP_OF_LEVEL = {"global": "pooled_distance_forward", "token": "alignment_forward", "span": "alignment_forward"}
LEVELS = tuple(OP_OF_LEVEL)
# In the order of the enumerations in csrc/spans.h and csrc/loss.h.
ANCHORS = ("topk", "peaks", "stride")
REDUCTIONS = ("none", "sum", "mean")


# A number; a tensor of one where a program is traced for every value.
Temperature = float | Tensor


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, norms and softmax: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def gradient_temperature(temperature: Temperature, dtype: torch.dtype) -> Temperature:
    """The temperature whose gradient is taken: 0, that of the hard alignment, where what is left of the soft one
    would be rounding, which is divided by the temperature."""
    return temperature if temperature >= (1e-14 if dtype == torch.float64 else 1e-5) else 0.0


class AlignmentInputs(NamedTuple):
    """The alignment's inputs, masks and priors folded into weights."""

    speech: Tensor  # [B, M, D]
    text: Tensor  # [B, N, D]
    frame_weights: Tensor  # [B, M]; 0: takes no part; below 0: masked, so not counted in a span's prior either
    token_mask: Tensor  # [B, N] bool
    start: Tensor | None  # [B, U] int32; None: the units are the frames
    end: Tensor | None
    temperature: Temperature  # 0: hard; a tensor reaches the registered ops alone

    @property
    def units(self) -> int:
        """U, or M where the units are the frames."""
        return self.speech.shape[1] if self.start is None else self.start.shape[1]


class Saved(NamedTuple):
    """What the alignment gives for each token, and all that its backward needs besides the inputs: [B, N] each."""

    similarity: Tensor  # opmath
    unit: Tensor  # int64, -1 where there is none
    log_normalizer: Tensor  # opmath


class PoolingInputs(NamedTuple):
    """The inputs of the pooled distance; a row of weight 0 takes no part."""

    speech: Tensor  # [B, M, D]
    text: Tensor  # [B, N, D]
    frame_weights: Tensor  # [B, M], at least 0
    token_weights: Tensor  # [B, N], at least 0


class Pooled(NamedTuple):
    """What the pooled distance gives, opmath; its backward needs the last two."""

    distance: Tensor  # [B]
    difference: Tensor  # [B, D], of the pooled rows
    totals: Tensor  # [B, 2], sums of the weights


class SpanInputs(NamedTuple):
    """What the spans are chosen from."""

    frame_weights: Tensor  # [B, M], at least 0
    frame_mask: Tensor  # [B, M] bool
    num_tokens: Tensor  # [B] int64
    num_anchors: Tensor  # [B] int64
    max_anchors: int  # the anchors that the result has room for
    scales: list[float]
    xi: Tensor | None  # [B] float64 (MPS: float32), frames per token; None: real frames over real tokens
    anchors: str  # one of ANCHORS


class Needed(NamedTuple):
    """Which gradients are asked for; the other is given as an empty tensor."""

    speech: bool
    text: bool


Gradients = tuple[Tensor, Tensor]


# The weight of masked frames where units are spans: they count in no mean.
MASKED_IN_SPANS = -1.0


class Positions(NamedTuple):
    """What is known of one side's positions, [B, L] each."""

    name: str  # of the prior, in error messages
    values: Tensor  # [B, L, ...]: the weights have its shape and device, and the opmath dtype for its dtype
    mask: Tensor | None  # bool; None: all positions are real
    prior: Tensor | None  # None: uniform over the real positions


class SpanSelection(NamedTuple):
    """How spans are to be chosen; as the arguments of `select_spans`."""

    num_anchors: Tensor | int | None
    scales: tuple[float, ...]
    anchors: str


class LossOptions(NamedTuple):
    """What a loss is told besides its tensors."""

    level: str  # one of LEVELS
    temperature: Temperature
    reduction: str  # one of REDUCTIONS
    selection: SpanSelection  # of the spans of the span level, where none are given


class LossRequest(NamedTuple):
    """A loss to compute: its embeddings, masks, priors and spans, checked but not yet made into weights."""

    speech: Positions
    text: Positions
    spans: tuple[Tensor, Tensor] | None  # [B, U] int32
    options: LossOptions
    differentiable: bool = True  # a gradient may be asked for

    @property
    def masked_frame_weight(self) -> float:
        """Where the units are spans, masked frames are told apart from those of prior 0."""
        return MASKED_IN_SPANS if self.options.level == "span" else 0.0

    @property
    def selection(self) -> SpanSelection | None:
        """How spans are chosen; None where the units are frames, or spans that are given."""
        if self.options.level != "span" or self.spans is not None:
            return None
        selection = self.options.selection
        # Without a prior there is nothing to choose anchors by.
        return selection if self.speech.prior is not None else selection._replace(anchors="stride")


class LossWeights(NamedTuple):
    """What becomes of a `LossRequest`."""

    frame_weights: Tensor  # [B, M] opmath, as in AlignmentInputs
    token_weights: Tensor  # [B, N] opmath, sums to 1 over a row with a real token, else 0
    start: Tensor | None
    end: Tensor | None


class LossInputs(NamedTuple):
    """The inputs of a loss; the global loss knows no spans and no temperature."""

    speech: Tensor
    text: Tensor
    frame_weights: Tensor
    token_weights: Tensor
    start: Tensor | None
    end: Tensor | None
    temperature: Temperature
    reduction: str  # one of REDUCTIONS

    def pooling(self) -> PoolingInputs:
        """The inputs of the global level's op."""
        return PoolingInputs(self.speech, self.text, self.frame_weights, self.token_weights)


class LossSaved(NamedTuple):
    """What a loss that is made of the ops keeps: the same whichever backend computed it, so that another can go on."""

    # Local: token_mask [B, N], or None, and the fields of Saved. Global: difference [B, D] and totals [B, 2].
    tensors: tuple[Tensor | None, ...]
    # The gradient of the (reduced) loss for the distance of an utterance that counts.
    grad_scale: Tensor | float


class LossRecord(NamedTuple):
    """A loss that was computed, for its backward. Autograd holds the tensors, where its hooks see them."""

    speech: Tensor
    text: Tensor
    options: LossOptions
    tensors: tuple[Tensor | None, ...]  # what the backend keeps
    form: Any  # by which it tells them apart
