"""The dtypes that the ops take, and those they compute in."""

import torch

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, norms and softmax: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
