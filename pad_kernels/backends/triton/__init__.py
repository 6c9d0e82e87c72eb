"""The Triton backend: GPUs, or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1 before the import).

Neither this module nor a question that it can answer without triton imports triton.
"""

import functools
import importlib
import os
import re
from typing import Any

import torch
from torch import Tensor

from pad_kernels.backends.base import Backend, capability_reason
from pad_kernels.inputs import (
    AlignmentInputs,
    Gradients,
    LossRecord,
    LossRequest,
    Needed,
    Pooled,
    PoolingInputs,
    Saved,
    SpanInputs,
)

OLDEST = (3, 3)  # the compiler of 3.2 aborts the process on some of the kernels
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _width_reason(op: str, width: int) -> str | None:
    if op == "significance":
        if not 16 <= width <= 256:
            return f"the triton backend takes heads of 16 to 256 columns, not {width}"
    elif op.startswith("alignment") and (width % 8 or not 8 <= width <= 2048):
        return f"the triton backend takes widths that are multiples of 8 up to 2048, not {width}"
    return None


@functools.cache
def _missing_reason() -> str | None:
    """Why triton itself cannot be used."""
    try:
        triton = importlib.import_module("triton")
    except ImportError as failure:
        return f"the triton backend could not be imported: {failure}"
    version = tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST:
        return f"the triton backend needs triton {OLDEST[0]}.{OLDEST[1]} or newer, not {triton.__version__}"
    return None


@functools.cache
def _chip_reason(index: int | None) -> str | None:
    """Why the kernels do not run on this GPU: older ones compile them without matrix units, or into too much memory."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    return capability_reason("the triton backend needs", index)


class TritonBackend(Backend):
    """Kernels in Triton."""

    name = "triton"
    default_devices = ("cuda",)  # on a CPU it is the interpreter, which nobody wants by default

    @functools.cached_property
    def kernels(self) -> Any:
        """The functions that launch the kernels."""
        return importlib.import_module("pad_kernels.backends.triton.kernels")

    def unsupported_reason(
        self, op: str, device: torch.device, dtype: torch.dtype, width: int | None = None
    ) -> str | None:
        """Why triton cannot do this here, or None."""
        reason = super().unsupported_reason(op, device, dtype, width)
        if reason is None and device.type != "cuda":
            interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
            if not interpreted:
                return f"the triton backend runs on cuda, not on {device.type}"
        if reason is None:
            reason = _missing_reason() or (_chip_reason(device.index) if device.type == "cuda" else None)
        if reason is None and device.type == "cpu" and not self.kernels.INTERPRETED:
            return "the triton backend runs on cuda: TRITON_INTERPRET was set after triton had been imported"
        if reason is None and dtype not in DTYPES:
            return f"the triton backend takes float32, bfloat16 and float16, not {dtype}"
        return reason if reason or width is None else _width_reason(op, width)

    def alignment_forward(self, inputs: AlignmentInputs) -> Saved:
        """Similarity, best unit and log-normalizer of each token."""
        saved: Saved = self.kernels.alignment_forward(inputs)
        return saved

    def alignment_backward(
        self, grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed
    ) -> Gradients:
        """Gradients of speech and text, each empty unless needed."""
        grads: Gradients = self.kernels.alignment_backward(grad_similarity, inputs, saved, needed)
        return grads

    def significance(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None) -> Tensor:
        """Normalized column sums of the attention, per position."""
        found: Tensor = self.kernels.significance(query, key, mask, scale, lse)
        return found

    def select_spans(self, inputs: SpanInputs) -> tuple[Tensor, Tensor]:
        """Start and end [B, max_anchors * len(scales)] int32 of the spans around each anchor frame."""
        bounds: tuple[Tensor, Tensor] = self.kernels.select_spans(inputs)
        return bounds

    def pooled_distance_forward(self, inputs: PoolingInputs) -> Pooled:
        """Distance of the pooled rows, their difference, and the sums of the weights."""
        pooled: Pooled = self.kernels.pooled_distance_forward(inputs)
        return pooled

    def pooled_distance_backward(self, grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
        """Gradients of speech and text."""
        grads: Gradients = self.kernels.pooled_distance_backward(grad, inputs, saved, needed)
        return grads

    def loss_forward(self, request: LossRequest) -> tuple[Tensor, LossRecord]:
        """The loss of a level in two or three launches, and what its backward needs."""
        if request.selection is not None and isinstance(request.selection.num_anchors, Tensor):
            # How many there may be is known only once it is read.
            weights = self.loss_weights(request)
            assert weights.start is not None and weights.end is not None
            request = request._replace(spans=(weights.start, weights.end))
        return self.kernels.loss_forward(request) or super().loss_forward(request)

    def loss_backward(self, grad: Tensor, record: LossRecord, needed: Needed) -> Gradients:
        """Gradients of speech and text, each empty unless needed."""
        if not isinstance(record.form, self.kernels.Form):
            return super().loss_backward(grad, record, needed)
        grads: Gradients = self.kernels.loss_backward(grad, record, needed)
        return grads

    def unpack(self, record: LossRecord) -> LossRecord:
        """The parts of the memory, each as a tensor of its own."""
        if not isinstance(record.form, self.kernels.Form):
            return record
        found: LossRecord = self.kernels.unpack(record)
        return found


BACKEND: TritonBackend = TritonBackend()
