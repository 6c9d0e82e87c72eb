"""The contract of precision (docs/precision.md): an error of 1e-5 of the value, or 1e-6 of what it is left over from.

Half precision: 1e-2 of the value. float64 is held to the same numbers times the ratio of the roundings.
"""

import torch
from torch import Tensor

OF_VALUE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 1e-2}
OF_SCALE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-6, torch.float16: 1e-6}
# What the backends for GPUs round on the way, in half precision: units that are pooled, and weights of the gradients.
TRITON = {torch.bfloat16: 1e-3, torch.float16: 1e-3}
SMALLEST = {torch.float16: 2.0**-25}  # half of the last digit


class Verdict:
    """The cases that did not hold, each in a line."""

    def __init__(self):
        self.failures: list[str] = []
        self.cases = 0

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failures.append(what)

    def close(
        self, found: Tensor, correct: Tensor, scale, dtype: torch.dtype, what: str, of_scale: float | None = None
    ):
        """`scale`: a number or a tensor, of which the norm counts."""
        if found.dtype == torch.float16:  # what it cannot hold is infinite
            beyond = correct.abs() > 65000
            self.expect(bool((found[beyond].abs() > 64000).all()), f"{what}: finite where float16 has no such number")
            found, correct = (x.masked_fill(beyond, 0) for x in (found, correct))
        error = float((found.double() - correct).norm())
        scale = float(torch.as_tensor(scale, dtype=torch.float64).norm())
        of_scale = OF_SCALE[dtype] if of_scale is None else of_scale
        allowed = max(OF_VALUE[dtype] * float(correct.norm()), of_scale * scale)
        if found.dtype in SMALLEST:
            allowed += SMALLEST[found.dtype] * found.numel() ** 0.5
        self.expect(error <= allowed, f"{what}: an error of {error:.3g}, allowed {allowed:.3g}")

    def check(self, most: int = 12) -> None:
        """Fails if a case did not hold."""
        shown = "\n".join(self.failures[:most])
        assert not self.failures, f"{len(self.failures)} failures in {self.cases} cases:\n{shown}"
