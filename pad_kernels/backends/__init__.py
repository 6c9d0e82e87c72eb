"""Who serves what: for each op, device and dtype the fastest backend that can, or the one asked for."""

import functools
import importlib
import os
import warnings

import torch

from pad_kernels import self_test
from pad_kernels.backends import reference

OPS = (
    "alignment_forward",
    "alignment_backward",
    "significance",
    "select_spans",
    "pooled_distance_forward",
    "pooled_distance_backward",
)
FASTEST_FIRST = ("triton", "native", "reference")
TRITON_OPS = ("alignment_forward", "alignment_backward", "significance")
ENVIRONMENT_VARIABLE = "PAD_KERNELS_BACKEND"


class _Reference:
    """Plain PyTorch: runs everywhere."""

    def __getattr__(self, op):
        return getattr(reference, op)

    def serves(self, op, device, dtype, width=None):
        return None


class _Missing:
    """A backend that cannot be used, and why."""

    def __init__(self, reason):
        self.reason = reason

    def serves(self, op, device, dtype, width=None):
        return self.reason


@functools.cache
def _backend(name):
    if name == "reference":
        return _Reference()
    try:
        return importlib.import_module(f"pad_kernels.backends.{name}")
    except ImportError as failure:
        return _Missing(f"the {name} backend could not be imported: {failure}")


@functools.lru_cache(maxsize=4096)
def reason_against(
    op: str, name: str, device: torch.device, dtype: torch.dtype, width: int | None = None
) -> str | None:
    """None where backend `name` serves `op` on this device, dtype and width D, else why it does not."""
    if name == "triton" and op not in TRITON_OPS:
        return f"the triton backend has no {op}"
    if name == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the triton backend runs on a GPU, not on cpu"  # said without importing triton
    return _backend(name).serves(op, device, dtype, width)


def compiled(name: str | None, device: torch.device):
    """The backend whose compiled functions do what surrounds the ops on a CPU; None: plain PyTorch does it."""
    wanted = name or os.environ.get(ENVIRONMENT_VARIABLE)
    if device.type != "cpu" or wanted == "reference":
        return None
    return None if reason_against("alignment_forward", "native", device, torch.float32) else _backend("native")


def check_name(name: str | None, argument: str = "backend") -> None:
    """ValueError unless `name` is None, "auto" or the name of a backend."""
    if name is not None and name != "auto" and name not in FASTEST_FIRST:
        names = ", ".join(("auto", *FASTEST_FIRST))
        raise ValueError(f"{argument}: got {name!r}, expected one of {names}")


@functools.cache
def _warn(failure):
    warnings.warn(f"pad_kernels: {failure}; another backend is used", RuntimeWarning, stacklevel=4)


def _candidates(name, device):
    if name != "auto":
        return (name,)
    # Triton on a CPU is its interpreter, which nobody wants by default.
    return FASTEST_FIRST if device.type != "cpu" else ("native", "reference")


def serve(op: str, name: str, device: torch.device, dtype: torch.dtype, width: int | None = None):
    """The function that computes `op`; `name` is a backend, "auto", or empty for the environment's choice.

    width: D of the embeddings or of a head, where a backend may have a limit. "auto" falls back, and so does
    the environment's choice for an op that its backend does not have.
    Raises ValueError with the reason if a backend asked for by name cannot serve, RuntimeError if it computes
    wrongly on this GPU.
    """
    if not name:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        check_name(name, f"environment variable {ENVIRONMENT_VARIABLE}")
        if name == "triton" and op not in TRITON_OPS:
            name = "auto"
    for candidate in _candidates(name, device):
        reason = reason_against(op, candidate, device, dtype, width)
        if reason is not None:
            continue
        backend = _backend(candidate)
        if device.type == "cuda" and candidate != "reference":
            failure = self_test.failure(candidate, backend, op, device, dtype)
            if failure is not None and name != "auto":
                raise RuntimeError(f"pad_kernels: {failure}")
            if failure is not None:
                _warn(failure)
                continue
        return getattr(backend, op)
    raise ValueError(f"backend {name!r} cannot run {op} on {device} with {dtype}: {reason}")


def available_backends(device: torch.device | str = "cpu") -> list[str]:
    """Names of the backends that serve at least one op in float32 on `device`, the fastest first."""
    device = torch.device(device)
    return [
        name
        for name in FASTEST_FIRST
        if any(reason_against(op, name, device, torch.float32) is None for op in OPS)
    ]
