"""What a backend is: a name, the ops that it has, where it runs, and the losses that it makes of them."""

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from pad_kernels import checks
from pad_kernels.inputs import (
    AlignmentInputs,
    Gradients,
    LossInputs,
    LossOptions,
    LossRecord,
    LossRequest,
    LossSaved,
    LossWeights,
    Needed,
    Pooled,
    PoolingInputs,
    Positions,
    Saved,
    SpanInputs,
)
from pad_kernels.registration import OPS
from pad_kernels.weights import position_weights


def capability_reason(subject: str, index: int | None) -> str | None:
    """Why GPU kernels do not run on an NVIDIA GPU that is too old for them. subject: what needs a newer one."""
    major, minor = torch.cuda.get_device_capability(index)
    return None if major >= 8 else f"{subject} compute capability 8.0, not {major}.{minor}"


class Backend:
    """One way to compute the ops, and with them the losses.

    A backend sets `name`, and has the ops of which it defines the method. It may also have its own way of any other
    method here: the steps around the ops, which are plain PyTorch, or a whole loss, which is made of the steps.
    """

    name: str
    # The types of device on which "auto" considers this backend; None: all.
    default_devices: tuple[str, ...] | None = None

    def has(self, op: str) -> bool:
        """Whether this backend has an op, on whichever device."""
        return op in OPS and getattr(type(self), op, None) is not getattr(Backend, op, None)

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops that this backend has."""
        return tuple(op for op in OPS if self.has(op))

    def ops_on(self, device_type: str) -> tuple[str, ...]:
        """The ops that this backend has for a type of device, whether or not it can be used here and now."""
        return self.ops if self.default_devices is None or device_type in self.default_devices else ()

    def unsupported_reason(
        self, op: str, device: torch.device, dtype: torch.dtype, width: int | None = None
    ) -> str | None:
        """None where `op` runs here on this device, dtype and width (D, or that of a head), else why it does not."""
        return None if self.has(op) else f"the {self.name} backend has no {op}"

    # The ops.

    def alignment_forward(self, inputs: AlignmentInputs) -> Saved:
        """Similarity, best unit and log-normalizer of each token."""
        self._missing("alignment_forward")

    def alignment_backward(
        self, grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed
    ) -> Gradients:
        """Gradients of speech and text."""
        self._missing("alignment_backward")

    def select_spans(self, inputs: SpanInputs) -> tuple[Tensor, Tensor]:
        """Start and end [B, max_anchors * len(scales)] int32 of the spans around each anchor frame."""
        self._missing("select_spans")

    def pooled_distance_forward(self, inputs: PoolingInputs) -> Pooled:
        """Distance of the pooled rows, their difference, and the sums of the weights."""
        self._missing("pooled_distance_forward")

    def pooled_distance_backward(self, grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
        """Gradients of speech and text; `saved.distance` is not read."""
        self._missing("pooled_distance_backward")

    def significance(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None) -> Tensor:
        """Column sums [B, T] of softmax(q k^T scale) over the real rows, mean over heads, scaled to sum to 1."""
        self._missing("significance")

    def _missing(self, op: str) -> NoReturn:
        raise NotImplementedError(f"the {self.name} backend has no {op}")

    # The steps around them.

    def position_weights(self, positions: Positions, *, normalized: bool = False, masked: float = 0.0) -> Tensor:
        """`weights.position_weights`."""
        return position_weights(positions, normalized=normalized, masked=masked)

    def spans_fit(self, start: Tensor, end: Tensor, frames: int) -> bool:
        """Whether all spans lie within the frames, where the values can be read without a wait; else True."""
        return checks.spans_fit(start, end, frames)

    def loss_weights(self, request: LossRequest) -> LossWeights:
        """The weights of frames and tokens, and the spans: of masks and priors, or those given."""
        frame_weights = self.position_weights(request.speech, masked=request.masked_frame_weight)
        token_weights = self.position_weights(request.text, normalized=True)
        if request.spans is not None:
            return LossWeights(frame_weights, token_weights, *request.spans)
        if request.selection is None:
            return LossWeights(frame_weights, token_weights, None, None)
        return LossWeights(frame_weights, token_weights, *self.select_spans(_span_inputs(request, frame_weights)))

    def token_loss(self, saved: Saved, token_weights: Tensor, reduction: str) -> tuple[Tensor, Tensor | float]:
        """sum_j q_j (1 - similarity_j), reduced over the utterances in which a token has a unit; and `grad_scale`."""
        distance = (token_weights * (1 - saved.similarity)).sum(1)
        return _reduce(distance, (saved.unit >= 0).any(1), reduction)

    def pooled_loss(self, pooled: Pooled, reduction: str) -> tuple[Tensor, Tensor | float]:
        """The distances, reduced over the utterances with weights on both sides; and `grad_scale`."""
        return _reduce(pooled.distance, (pooled.totals > 0).all(1), reduction)

    # The losses.

    def loss_forward(self, request: LossRequest) -> tuple[Tensor, LossRecord]:
        """The loss of a level, and what its backward needs."""
        weights = self.loss_weights(request)
        speech, text, options = request.speech.values, request.text.values, request.options
        inputs = LossInputs(speech, text, *weights, options.temperature, options.reduction)
        forward = self.global_loss_forward if options.level == "global" else self.local_loss_forward
        loss, saved = forward(inputs)
        return loss, record_of_ops(speech, text, options, weights, saved)

    def loss_backward(self, grad: Tensor, record: LossRecord, needed: Needed) -> Gradients:
        """Gradients of speech and text, each empty unless needed; `grad` is that of the reduced loss."""
        inputs, saved = _from_record(record)
        if record.options.level == "global":
            return self.global_loss_backward(grad, inputs, saved, needed)
        return self.local_loss_backward(grad, inputs, saved, needed)

    def unpack(self, record: LossRecord) -> LossRecord:
        """The record of a loss that this backend computed, in the form that any backend can go on with."""
        return record

    def local_loss_forward(self, inputs: LossInputs) -> tuple[Tensor, LossSaved]:
        """The loss of the token and span levels."""
        token_mask = inputs.token_weights > 0
        saved = self.alignment_forward(_alignment_inputs(inputs, token_mask))
        loss, grad_scale = self.token_loss(saved, inputs.token_weights, inputs.reduction)
        return loss, LossSaved((token_mask, *saved), grad_scale)

    def local_loss_backward(self, grad: Tensor, inputs: LossInputs, saved: LossSaved, needed: Needed) -> Gradients:
        """Gradients of speech and text; `grad` is that of the reduced loss."""
        token_mask, similarity, unit, log_normalizer = saved.tensors
        assert similarity is not None and unit is not None and log_normalizer is not None
        if token_mask is None:
            token_mask = inputs.token_weights > 0
        grad = grad * -saved.grad_scale
        grad_similarity = inputs.token_weights * (grad[:, None] if grad.dim() else grad)
        aligned = Saved(similarity, unit, log_normalizer)
        return self.alignment_backward(grad_similarity, _alignment_inputs(inputs, token_mask), aligned, needed)

    def global_loss_forward(self, inputs: LossInputs) -> tuple[Tensor, LossSaved]:
        """The loss of the global level."""
        pooled = self.pooled_distance_forward(inputs.pooling())
        loss, grad_scale = self.pooled_loss(pooled, inputs.reduction)
        return loss, LossSaved((pooled.difference, pooled.totals), grad_scale)

    def global_loss_backward(self, grad: Tensor, inputs: LossInputs, saved: LossSaved, needed: Needed) -> Gradients:
        """Gradients of speech and text; `grad` is that of the reduced loss."""
        difference, totals = saved.tensors
        assert difference is not None and totals is not None
        grad = (grad * saved.grad_scale).expand(inputs.speech.shape[0])
        return self.pooled_distance_backward(grad, inputs.pooling(), Pooled(grad, difference, totals), needed)


class _Form(NamedTuple):
    """Of a record: the weights come first, then `grad_scale` if it is a tensor, then what is kept."""

    grad_scale: float | None


def as_kept(kept: Tensor | None) -> Tensor | None:
    """What a loss has kept, for those who read its memory: hooks of saved tensors may have laid it out anew, or put
    bytes where no number can be."""
    if kept is None:
        return None
    kept = kept.contiguous()
    places = kept.data_ptr(), int(kept.storage_offset())
    return kept.clone() if kept.dtype == torch.uint8 and any(place % 16 for place in places) else kept


def record_of_ops(
    speech: Tensor, text: Tensor, options: LossOptions, weights: tuple[Tensor | None, ...], saved: LossSaved
) -> LossRecord:
    """The record of a loss that is made of the ops; `weights`: those of frames and tokens, start and end."""
    tensors, scale = saved
    known, of_batch = (None, scale) if isinstance(scale, Tensor) else (scale, None)
    return LossRecord(speech, text, options, (*weights, of_batch, *tensors), _Form(known))


def _from_record(record: LossRecord) -> tuple[LossInputs, LossSaved]:
    speech, text, options, (frame_weights, token_weights, start, end, scale, *kept), form = record
    assert frame_weights is not None and token_weights is not None
    inputs = LossInputs(speech, text, frame_weights, token_weights, start, end, options.temperature, options.reduction)
    grad_scale = form.grad_scale if scale is None else scale
    return inputs, LossSaved(tuple(kept), grad_scale)


def _span_inputs(request: LossRequest, frame_weights: Tensor) -> SpanInputs:
    frame_mask, text_mask, selection = request.speech.mask, request.text.mask, request.selection
    assert selection is not None
    if frame_mask is None:
        frame_mask = torch.ones(frame_weights.shape, dtype=torch.bool, device=frame_weights.device)
    tokens = request.text.values.shape[1]
    return checks.span_inputs(
        frame_weights,
        frame_mask,
        tokens if text_mask is None else text_mask.sum(1),
        selection,
        max_anchors=tokens if selection.num_anchors is None else None,
    )


def _alignment_inputs(inputs: LossInputs, token_mask: Tensor) -> AlignmentInputs:
    return AlignmentInputs(
        inputs.speech, inputs.text, inputs.frame_weights, token_mask, inputs.start, inputs.end, inputs.temperature
    )


def _reduce(distance: Tensor, valid: Tensor, reduction: str) -> tuple[Tensor, Tensor | float]:
    """The loss of distances [B] of the utterances that count, and the gradient of each such distance."""
    distance = torch.where(valid, distance, 0)
    if reduction == "none":
        return distance, 1.0
    grad_scale: Tensor | float = 1.0
    if reduction == "mean":
        grad_scale = valid.sum().clamp(min=1).to(distance.dtype).reciprocal()
    return distance.sum() * grad_scale, grad_scale
