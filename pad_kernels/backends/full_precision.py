"""Matrix products of float32 in float32, whatever autocast and the precision of matrix products are set to."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

_lock = threading.Lock()
_users = 0
_restore: Callable[[], None] | None = None


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would multiply in half precision, `torch.set_float32_matmul_precision` in tf32 or bfloat16.

    While torch.compile traces, only autocast is ended: a compiled program keeps no setting of the process.
    """
    if torch.compiler.is_compiling():
        return torch.autocast(device.type, enabled=False)
    return _full_precision(device)


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """The precision is a setting of the process: the last thread to leave gives it back."""
    global _users, _restore
    with _lock:
        if _users == 0:
            _restore = _raised()
        _users += 1
    try:
        if torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _restore is not None:
                _restore()
                _restore = None


def _raised() -> Callable[[], None] | None:
    """Raise the precision of matrix products where it is not the highest; what gives it back."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it is set for each backend, as torch 2.9 and newer can
        both: tuple[Any, ...] = torch.backends.cuda, torch.backends.mkldnn
        products = [backend.matmul for backend in both]
        settings = [product.fp32_precision for product in products]

        def give(precisions: list[str]) -> None:
            for product, precision in zip(products, precisions):
                product.fp32_precision = precision

        give(["ieee"] * len(products))
        return lambda: give(settings)
    if before == "highest":
        return None
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)
