"""A tiny case of every op against the float64 reference, so that a broken compiler or driver is reported
instead of training on wrong gradients.

Runs once in a process for each backend, op, GPU and dtype, at the first use there; and for everything in
`python -m pad_kernels.info --check`.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pad_kernels.backends.base import Backend
from pad_kernels.backends.reference import BACKEND as REFERENCE
from pad_kernels.inputs import (
    ANCHORS,
    REDUCTIONS,
    AlignmentInputs,
    LossInputs,
    Needed,
    PoolingInputs,
    SpanInputs,
    opmath_dtype,
)
from pad_kernels.ops.registration import OPS

BAR = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
BOTH = Needed(True, True)
_Case = Callable[[Backend, torch.device, torch.dtype], float]
_found: dict[tuple[str, _Case, torch.device, torch.dtype], str | None] = {}


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _error(value: Tensor, truth: Tensor) -> float:
    value, truth = value.double().cpu(), truth.double().cpu()
    return float((value - truth).norm() / truth.norm().clamp(min=1e-12))


def _largest_error(values: Iterable[Tensor], truths: Iterable[Tensor]) -> float:
    return max(_error(value, truth) for value, truth in zip(values, truths))


def _alignment_cases(device: torch.device, dtype: torch.dtype) -> list[AlignmentInputs]:
    """Frames and spans, soft and hard, ragged."""
    speech, text = (x.to(device, dtype) for x in (_random(2, 70, 64), _random(2, 17, 64) + 1))
    frame_prior = ((torch.arange(70) < torch.tensor([[70], [41]])).float() / 70).to(device)
    token_mask = (torch.arange(17) < torch.tensor([[17], [9]])).to(device)
    start = torch.arange(0, 66, 3, dtype=torch.int32).expand(2, -1).to(device)
    frames = AlignmentInputs(speech, text, frame_prior, token_mask, None, None, 0.1)
    spans = frames._replace(start=start, end=start + 5)
    return [inputs._replace(temperature=temperature) for inputs in (frames, spans) for temperature in (0.1, 0.0)]


def _alignment(backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of similarities, losses and gradients."""
    grad = _random(2, 17).float().to(device)
    errors = []
    for inputs in _alignment_cases(device, dtype):
        speech, text, frame_prior, token_mask, start, end, temperature = inputs
        wide = inputs._replace(speech=speech.double(), text=text.double(), frame_prior=frame_prior.double())
        saved, truth = backend.alignment_forward(inputs), REFERENCE.alignment_forward(wide)
        if temperature == 0:
            truth = truth._replace(unit=saved.unit)
        gradients = backend.alignment_backward(grad, inputs, saved, BOTH)
        expected = REFERENCE.alignment_backward(grad.double(), wide, truth, BOTH)
        errors.append(_largest_error((saved.similarity, *gradients), (truth.similarity, *expected)))

        token_prior = token_mask / token_mask.sum(1, keepdim=True)
        loss = LossInputs(speech, text, frame_prior, token_prior, start, end, temperature, "mean")
        wide_loss = LossInputs(
            wide.speech, wide.text, wide.frame_prior, token_prior.double(), start, end, temperature, "mean"
        )
        errors.append(_loss_error(backend, loss, wide_loss, level="local"))
    return max(errors)


def _loss_error(backend: Backend, inputs: LossInputs, wide: LossInputs, level: str) -> float:
    """Error of a loss and its gradients, for each reduction: a backend may have its own way of a whole loss."""
    errors = []
    for reduction in REDUCTIONS:
        inputs, wide = inputs._replace(reduction=reduction), wide._replace(reduction=reduction)
        loss, saved = getattr(backend, f"{level}_loss_forward")(inputs)
        truth, wide_saved = getattr(REFERENCE, f"{level}_loss_forward")(wide)
        # The backend's own choice of unit and signs of differences, where another is as good.
        tensors = list(wide_saved.tensors)
        if level == "global":
            tensors[0] = saved.tensors[0].double()
        elif inputs.temperature == 0:
            tensors[2] = saved.tensors[2]
        wide_saved = wide_saved._replace(tensors=tuple(tensors))
        gradients = getattr(backend, f"{level}_loss_backward")(torch.ones_like(loss), inputs, saved, BOTH)
        expected = getattr(REFERENCE, f"{level}_loss_backward")(torch.ones_like(truth), wide, wide_saved, BOTH)
        errors.append(_largest_error((loss, *gradients), (truth, *expected)))
    return max(errors)


def _select_spans(backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    prior = _random(2, 70).abs().to(device, torch.float32)
    counts = torch.tensor([5, 3], device=device)
    wrong = 0.0
    for anchors in ANCHORS:
        inputs = SpanInputs(prior, prior > 0.1, counts, counts, 5, [0.5, 1.0, 2.0], None, anchors)
        found, expected = backend.select_spans(inputs), REFERENCE.select_spans(inputs)
        wrong = max(wrong, *((x != y).double().mean().item() for x, y in zip(found, expected)))
    return wrong


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
    return max(
        _largest_error((*found, *gradients), (*truth, *expected)),
        _loss_error(
            backend, LossInputs(*inputs, None, None, 0.0, "mean"), LossInputs(*wide, None, None, 0.0, "mean"), "global"
        ),
    )


_CASES: dict[str, _Case] = {
    "alignment_forward": _alignment,
    "alignment_backward": _alignment,
    "select_spans": _select_spans,
    "pooled_distance_forward": _pooled_distance,
    "pooled_distance_backward": _pooled_distance,
}


@functools.cache
def _case(op: str) -> _Case:
    """The case of an op: its own here, or its example."""
    return _CASES[op] if op in _CASES else functools.partial(_example, op)


def _example(op: str, backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of what an op without a gradient gives for its example."""
    example = OPS[op]
    assert example is not None, f"{op} has neither an example nor a case"
    arguments = example(device, dtype)
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    found, truth = backend.function(op)(*arguments), REFERENCE.function(op)(*wide)
    return _largest_error(*((x,) if isinstance(x, Tensor) else x for x in (found, truth)))


def failure(backend: Backend, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if `backend` computes the tiny case of `op` rightly on this device, else what went wrong.

    The result is kept for the process. Inside a CUDA graph's capture nothing is run and None is given.
    """
    if backend is REFERENCE:
        return None
    case = _case(op)
    key = (backend.name, case, device, dtype)
    if key not in _found:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        _found[key] = None  # the case itself comes by here
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                error = case(backend, device, dtype)
        except torch.OutOfMemoryError:
            del _found[key]  # says nothing of the kernels
            return None
        except Exception as problem:  # whatever a compiler or a driver may raise
            _found[key] = f"the {backend.name} backend fails a test case of {op} on {device} in {dtype}: {problem}"
        else:
            if not error <= BAR[dtype]:
                _found[key] = (
                    f"the {backend.name} backend computes {op} wrongly on {device} in {dtype}: relative error "
                    f"{error:.1e} in a test case, at most {BAR[dtype]:.0e} expected"
                )
    return _found[key]
