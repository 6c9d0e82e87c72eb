"""A tiny case of every op and loss against the float64 reference, so that a broken compiler or driver is reported
instead of training on wrong gradients.

Runs once in a process for each backend, op or level of the loss, GPU and dtype, at the first use there; and for
everything in `python -m pad_kernels.info --check`.
"""

import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pad_kernels.backends.base import Backend
from pad_kernels.backends.reference import BACKEND as REFERENCE
from pad_kernels.inputs import (
    ANCHORS,
    REDUCTIONS,
    AlignmentInputs,
    LossOptions,
    LossRequest,
    Needed,
    PoolingInputs,
    Positions,
    SpanInputs,
    SpanSelection,
    opmath_dtype,
)
from pad_kernels.registration import OPS

BAR = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
BOTH = Needed(True, True)
_CALLS = 3  # of a loss: from the third on a backend may repeat what it did, in place of finding it out again
# They say nothing of the kernels; only the first is torch's own.
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
_Case = Callable[[Backend, torch.device, torch.dtype], float]
_Key = tuple[str, _Case, torch.device, torch.dtype]
_found: dict[_Key, str | None] = {}
_lock = threading.Lock()


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _error(value: Tensor, truth: Tensor) -> float:
    value, truth = value.double().cpu(), truth.double().cpu()
    return float((value - truth).norm() / truth.norm().clamp(min=1e-12))


def _largest_error(values: Iterable[Tensor], truths: Iterable[Tensor]) -> float:
    return _largest(_error(value, truth) for value, truth in zip(values, truths))


def _largest(errors: Iterable[float]) -> float:
    """NaN if one is."""
    found = list(errors)
    return math.nan if any(map(math.isnan, found)) else max(found)


def _alignment_cases(device: torch.device, dtype: torch.dtype) -> list[AlignmentInputs]:
    """Frames and spans, soft and hard, ragged."""
    speech, text = (x.to(device, dtype) for x in (_random(2, 70, 64), _random(2, 17, 64) + 1))
    frame_weights = ((torch.arange(70) < torch.tensor([[70], [41]])).float() / 70).to(device)
    token_mask = (torch.arange(17) < torch.tensor([[17], [9]])).to(device)
    start = torch.arange(0, 66, 3, dtype=torch.int32).expand(2, -1).to(device)
    frames = AlignmentInputs(speech, text, frame_weights, token_mask, None, None, 0.1)
    spans = frames._replace(start=start, end=start + 5)
    return [inputs._replace(temperature=temperature) for inputs in (frames, spans) for temperature in (0.1, 0.0)]


def _alignment(backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of similarities and gradients."""
    grad = _random(2, 17).float().to(device)
    errors = []
    for inputs in _alignment_cases(device, dtype):
        speech, text, frame_weights, token_mask, start, end, temperature = inputs
        wide = inputs._replace(speech=speech.double(), text=text.double(), frame_weights=frame_weights.double())
        saved, truth = backend.alignment_forward(inputs), REFERENCE.alignment_forward(wide)
        if temperature == 0:
            truth = truth._replace(unit=saved.unit)
        gradients = backend.alignment_backward(grad, inputs, saved, BOTH)
        expected = REFERENCE.alignment_backward(grad.double(), wide, truth, BOTH)
        errors.append(_largest_error((saved.similarity, *gradients), (truth.similarity, *expected)))
    return _largest(errors)


def _positions(name: str, values: Tensor) -> Positions:
    """Ragged, with a prior."""
    batch, length, _ = values.shape
    real = torch.arange(length) < torch.tensor([[length], [length * 3 // 5]])
    prior = _random(batch, length).abs() + 0.1
    return Positions(name, values, real.to(values.device), prior.float().to(values.device))


def _loss(level: str, backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of losses and gradients, from masks and priors on."""
    speech = _positions("speech_prior", _random(2, 70, 64).to(device, dtype))
    text = _positions("text_prior", (_random(2, 40, 64) + 1).to(device, dtype))  # a whole tile of tokens
    errors = []
    for reduction in REDUCTIONS:
        for temperature in (0.0,) if level == "global" else (0.0, 0.1):
            options = LossOptions(level, temperature, reduction, SpanSelection(None, (0.5, 1.0, 2.0), "topk"))
            request = LossRequest(speech, text, None, options)
            wide = request._replace(
                speech=speech._replace(values=speech.values.double()), text=text._replace(values=text.values.double())
            )
            expected = _loss_and_gradients(REFERENCE, wide)
            # All reductions are repeated alike.
            for _ in range(_CALLS if reduction == "mean" else 1):
                errors.append(_largest_error(_loss_and_gradients(backend, request), expected))
    return _largest(errors)


def _loss_and_gradients(backend: Backend, request: LossRequest) -> tuple[Tensor, Tensor, Tensor]:
    loss, record = backend.loss_forward(request)
    return loss, *backend.loss_backward(torch.ones_like(loss), record, BOTH)


def _select_spans(backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    frame_weights = _random(2, 70).abs().to(device, torch.float32)
    counts = torch.tensor([5, 3], device=device)
    wrong = []
    for anchors in ANCHORS:
        frame_mask = frame_weights > 0.1
        inputs = SpanInputs(frame_weights, frame_mask, counts, counts, 5, [0.5, 1.0, 2.0], None, anchors)
        found, expected = backend.select_spans(inputs), REFERENCE.select_spans(inputs)
        wrong += [(x != y).double().mean().item() for x, y in zip(found, expected)]
    return _largest(wrong)


def _pooled_distance(backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    speech, text = (x.to(device, dtype) for x in (_random(2, 70, 64), _random(2, 17, 64) + 1))
    frame_weights, token_weights = (_random(2, length).abs().to(device, opmath_dtype(dtype)) for length in (70, 17))
    grad = _random(2).to(device, opmath_dtype(dtype))
    inputs = PoolingInputs(speech, text, frame_weights, token_weights)
    wide = PoolingInputs(*(tensor.double() for tensor in inputs))
    found, truth = backend.pooled_distance_forward(inputs), REFERENCE.pooled_distance_forward(wide)
    gradients = backend.pooled_distance_backward(grad, inputs, found, BOTH)
    # The signs of the op's own differences, so that one that is about 0 does not count.
    saved = truth._replace(difference=found.difference.double())
    expected = REFERENCE.pooled_distance_backward(grad.double(), wide, saved, BOTH)
    return _largest_error((*found, *gradients), (*truth, *expected))


_CASES: dict[str, _Case] = {
    "alignment_forward": _alignment,
    "alignment_backward": _alignment,
    "select_spans": _select_spans,
    "pooled_distance_forward": _pooled_distance,
    "pooled_distance_backward": _pooled_distance,
}


@functools.cache
def _case(op: str, level: str | None) -> _Case:
    """The case of a level of the loss or of an op: its own here, or its example."""
    if level is not None:
        return functools.partial(_loss, level)
    return _CASES[op] if op in _CASES else functools.partial(_example, op)


def _example(op: str, backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of what an op without a gradient gives for its example."""
    example = OPS[op]
    assert example is not None, f"{op} has neither an example nor a case"
    arguments = example(device, dtype)
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    found, truth = getattr(backend, op)(*arguments), getattr(REFERENCE, op)(*wide)
    return _largest_error(*((x,) if isinstance(x, Tensor) else x for x in (found, truth)))


def failure(
    backend: Backend, op: str, device: torch.device, dtype: torch.dtype, level: str | None = None
) -> str | None:
    """None if `backend` computes a tiny case rightly on this device, else what went wrong.

    The case is that of `op`, or of the loss of a `level`. The result is kept for the process. Inside a CUDA graph's
    capture nothing is run and None is given, and so it is where the memory does not suffice.
    """
    if backend is REFERENCE:
        return None
    key = (backend.name, _case(op, level), device, dtype)
    if key in _found:
        return _found[key]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    with _lock:  # another thread waits for the result
        if key not in _found:
            try:
                _found[key] = _run(backend, f"the {level} loss" if level else op, key)
            except torch.OutOfMemoryError:
                return None
    return _found[key]


@contextmanager
def _unwatched(device: torch.device) -> Iterator[None]:
    """Without torch's modes that refuse what the reference does, or that the result is waited for."""
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    mode = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    torch.use_deterministic_algorithms(False)
    if mode:
        torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if mode:
            torch.cuda.set_sync_debug_mode(mode)


def _run(backend: Backend, what: str, key: _Key) -> str | None:
    """What went wrong. Raises torch.OutOfMemoryError where that says nothing of the kernels."""
    _, case, device, dtype = key
    try:
        with (
            torch.no_grad(), torch.autocast(device.type, enabled=False), torch.device("cpu"), _unwatched(device)
        ):  # fmt: skip
            error = case(backend, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # whatever a compiler or a driver may raise
        if any(sign in str(problem) for sign in _OUT_OF_MEMORY):
            raise torch.OutOfMemoryError(str(problem)) from problem
        return f"the {backend.name} backend fails a test case of {what} on {device} in {dtype}: {problem}"
    if error <= BAR[dtype]:
        return None
    return (
        f"the {backend.name} backend computes {what} wrongly on {device} in {dtype}: relative error "
        f"{error:.1e} in a test case, at most {BAR[dtype]:.0e} expected"
    )


def untested_reason(backend: Backend, op: str, device: torch.device, dtype: torch.dtype, level: str | None) -> str:
    """For `info --check`: what kept `failure` from finding anything, empty if nothing did."""
    if backend is REFERENCE or (backend.name, _case(op, level), device, dtype) in _found:
        return ""
    return f"{level or op} of the {backend.name} backend could not be tested on {device} in {dtype}: out of memory"
