"""Who serves what: for each op, device and dtype the fastest backend that can, or the one asked for."""

import functools
import importlib
import os

import torch

from pad_kernels import reference

OPS = (
    "alignment_forward",
    "alignment_backward",
    "significance",
    "select_spans",
    "pooling_forward",
    "pooling_backward",
)
FASTEST_FIRST = ("triton", "native", "reference")
ENVIRONMENT_VARIABLE = "PAD_KERNELS_BACKEND"


class _Reference:
    """Plain PyTorch: runs everywhere."""

    def __getattr__(self, op):
        return getattr(reference, op)

    def serves(self, op, device, dtype):
        return None


class _Missing:
    """A backend that cannot be used, and why."""

    def __init__(self, reason):
        self.reason = reason

    def serves(self, op, device, dtype):
        return self.reason


@functools.cache
def _backend(name):
    if name == "reference":
        return _Reference()
    if name == "triton":
        return _Missing("the triton backend is not part of this version")
    try:
        return importlib.import_module(f"pad_kernels.backends.{name}")
    except ImportError as failure:
        return _Missing(f"the {name} backend could not be imported: {failure}")


def reason_against(op: str, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None where backend `name` serves `op` on this device and dtype, else why it does not."""
    return _backend(name).serves(op, device, dtype)


def check_name(name: str | None, argument: str = "backend") -> None:
    """ValueError unless `name` is None, "auto" or the name of a backend."""
    if name is not None and name != "auto" and name not in FASTEST_FIRST:
        names = ", ".join(("auto", *FASTEST_FIRST))
        raise ValueError(f"{argument}: got {name!r}, expected one of {names}")


@functools.lru_cache(maxsize=1024)
def _find(op, name, device, dtype):
    for candidate in FASTEST_FIRST if name == "auto" else (name,):
        reason = reason_against(op, candidate, device, dtype)
        if reason is None:
            return getattr(_backend(candidate), op)
    raise ValueError(f"backend {name!r} cannot run {op} on {device} with {dtype}: {reason}")


def serve(op: str, name: str, device: torch.device, dtype: torch.dtype):
    """The function that computes `op`; `name` is a backend, "auto", or empty for the environment's choice.

    Raises ValueError with the reason if a backend asked for by name cannot serve; "auto" falls back.
    """
    if not name:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        check_name(name, f"environment variable {ENVIRONMENT_VARIABLE}")
    return _find(op, name, device, dtype)


def available_backends(device: torch.device | str = "cpu") -> list[str]:
    """Names of the backends that serve at least one op in float32 on `device`, the fastest first."""
    device = torch.device(device)
    return [
        name
        for name in FASTEST_FIRST
        if any(reason_against(op, name, device, torch.float32) is None for op in OPS)
    ]
