"""The functions that launch the kernels of the losses and their ops; importing this imports triton."""

from pad_kernels.backends.triton.common import INTERPRETED as _INTERPRETED
from pad_kernels.backends.triton.gradients import alignment_backward
from pad_kernels.backends.triton.losses import (
    global_loss_backward,
    global_loss_forward,
    local_loss_backward,
    local_loss_forward,
)
from pad_kernels.backends.triton.pooling import pooled_distance_backward, pooled_distance_forward
from pad_kernels.backends.triton.preparation import loss_weights, select_spans
from pad_kernels.backends.triton.scores import alignment_forward

__all__ = [
    "INTERPRETED",
    "alignment_backward",
    "alignment_forward",
    "global_loss_backward",
    "global_loss_forward",
    "local_loss_backward",
    "local_loss_forward",
    "loss_weights",
    "pooled_distance_backward",
    "pooled_distance_forward",
    "select_spans",
]

INTERPRETED: bool = _INTERPRETED.value
