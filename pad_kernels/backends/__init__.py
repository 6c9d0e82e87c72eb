"""Which backend implements an op: for each device and dtype the fastest that can, or the one asked for."""

import functools
import os
import warnings

import torch

from pad_kernels import checks
from pad_kernels.backends import library, native, reference, self_test, triton
from pad_kernels.backends.base import Backend
from pad_kernels.installation import warn_once
from pad_kernels.registration import OPS

FASTEST_FIRST: dict[str, Backend] = {
    backend.name: backend for backend in (triton.BACKEND, native.BACKEND, reference.BACKEND)
}
ENVIRONMENT_VARIABLE = "PAD_KERNELS_BACKEND"


def check_name(name: str | None, argument: str = "backend") -> None:
    """ValueError unless `name` is None, "auto" or the name of a backend."""
    if name is None:
        return
    if not isinstance(name, str) or name != "auto" and name not in FASTEST_FIRST:
        names = ", ".join(("auto", *FASTEST_FIRST))
        raise ValueError(f"{argument}: got {checks.describe(name)}, expected one of {names}")


@functools.cache
def _warn(failure: str) -> None:
    warnings.warn(f"pad_kernels: {failure}; another backend is used", RuntimeWarning, stacklevel=4)


@functools.lru_cache(maxsize=4096)
def _candidates(
    op: str, name: str, device: torch.device, dtype: torch.dtype, width: int | None
) -> tuple[tuple[Backend, ...], str | None, bool]:
    """The backends that can run the op, the fastest first, of those that `name` allows; why the last cannot; and
    whether they are tested before they are used."""
    found, reason = [], None
    for backend in FASTEST_FIRST.values() if name == "auto" else (FASTEST_FIRST[name],):
        if name == "auto" and backend.default_devices is not None and device.type not in backend.default_devices:
            continue
        reason = backend.unsupported_reason(op, device, dtype, width)
        if reason is None:
            found.append(backend)
    if name == "auto" and found == [reference.BACKEND] and library.COULD_BE_HERE:
        warn_once(str(library.REASON))
    return tuple(found), reason, device.type == "cuda"


def select_backend(
    op: str, name: str, device: torch.device, dtype: torch.dtype, width: int | None = None, level: str | None = None
) -> Backend:
    """The backend that computes `op`; `name` is that of one, "auto", or empty for the environment's choice.

    width: D of the embeddings or of a head, where a backend may have a limit. level: of the loss that `op` is wanted
    for. "auto" falls back, and so does the environment's choice for an op that its backend does not have.
    Raises ValueError with the reason if a backend asked for by name cannot run the op, RuntimeError if it computes
    wrongly on this GPU.
    """
    if not name:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        check_name(name, f"environment variable {ENVIRONMENT_VARIABLE}")
        if name != "auto" and _lacks(FASTEST_FIRST[name], op, device.type):
            name = "auto"
    candidates, reason, tested = _candidates(op, name, device, dtype, width)
    for backend in candidates:
        failure = self_test.failure(backend, op, device, dtype, level) if tested else None
        if failure is None:
            return backend
        if name != "auto":
            raise RuntimeError(f"pad_kernels: {failure}")
        _warn(failure)
    raise ValueError(f"backend {name!r} cannot run {op} on {device} with {dtype}: {reason}")


def forget_candidates() -> None:
    """For tests that change what a backend can do."""
    _candidates.cache_clear()


def _lacks(backend: Backend, op: str, device_type: str) -> bool:
    """Whether a backend has ops for a type of device, and this one not among them."""
    ops = backend.ops_on(device_type)
    return bool(ops) and op not in ops


def available_backends(device: torch.device | str = "cpu") -> list[str]:
    """Names of the backends that run at least one op in float32 on such a device, the fastest first.

    Whether there is such a device here is not asked.
    Raises ValueError for what is no device.
    """
    try:
        device = torch.device(device)
    except (TypeError, RuntimeError):
        checks.wrong("device", device, "a torch.device or the name of one, as 'cpu' or 'cuda:0'")
    return [
        name
        for name, backend in FASTEST_FIRST.items()
        if any(backend.unsupported_reason(op, device, torch.float32) is None for op in OPS)
    ]
