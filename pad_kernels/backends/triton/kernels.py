"""The functions that launch the kernels of the losses and the ops; importing this imports triton."""

from pad_kernels.backends.triton.common import INTERPRETED as _INTERPRETED
from pad_kernels.backends.triton.gradients import alignment_backward
from pad_kernels.backends.triton.losses import Form, loss_backward, loss_forward, unpack
from pad_kernels.backends.triton.pooling import pooled_distance_backward, pooled_distance_forward
from pad_kernels.backends.triton.preparation import select_spans
from pad_kernels.backends.triton.scores import alignment_forward
from pad_kernels.backends.triton.significance import significance

__all__ = [
    "INTERPRETED",
    "Form",
    "alignment_backward",
    "alignment_forward",
    "loss_backward",
    "loss_forward",
    "pooled_distance_backward",
    "pooled_distance_forward",
    "select_spans",
    "significance",
    "unpack",
]

INTERPRETED: bool = _INTERPRETED.value
