"""The functions that launch the Triton kernels; importing this imports triton."""

from pad_kernels.backends.triton.alignment_backward import alignment_backward
from pad_kernels.backends.triton.alignment_forward import alignment_forward
from pad_kernels.backends.triton.common import INTERPRETED as _INTERPRETED
from pad_kernels.backends.triton.significance import significance

__all__ = ["INTERPRETED", "alignment_backward", "alignment_forward", "significance"]

INTERPRETED: bool = _INTERPRETED.value
