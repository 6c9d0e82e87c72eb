"""A tiny case of every op against the float64 reference, so that a broken compiler or driver is reported
instead of training on wrong gradients.

Runs once in a process for each backend, op, GPU and dtype, at the first use there; and for everything in
`python -m pad_kernels.info --check`.
"""

import torch
from torch import Tensor

from pad_kernels.backends import reference
from pad_kernels.inputs import accumulator

BAR = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_found: dict[tuple, str | None] = {}


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _error(value: Tensor, truth: Tensor) -> float:
    value, truth = value.double().cpu(), truth.double().cpu()
    return ((value - truth).norm() / truth.norm().clamp(min=1e-12)).item()


def _alignment(backend, device, dtype):
    """Largest error of similarities and gradients: frames and spans, soft and hard, ragged."""
    speech, text = (x.to(device, dtype) for x in (_random(2, 70, 64), _random(2, 17, 64) + 1))
    frame_prior = (torch.arange(70) < torch.tensor([[70], [41]])).float() / 70
    token_mask = torch.arange(17) < torch.tensor([[17], [9]])
    start = torch.arange(0, 66, 3, dtype=torch.int32).expand(2, -1)
    grad = _random(2, 17).float()
    frame_prior, token_mask, start, grad = (x.to(device) for x in (frame_prior, token_mask, start, grad))
    errors = []
    for spans in ((None, None), (start, start + 5)):
        for temperature in (0.1, 0.0):
            inputs = (speech, text, frame_prior, token_mask, *spans)
            wide = [x.double() if x is not None and x.is_floating_point() else x for x in inputs]
            saved = backend.alignment_forward(*inputs, temperature)
            truth = reference.alignment_forward(*wide, temperature)
            truth = truth if temperature else (truth[0], saved[1], truth[2])
            gradients = backend.alignment_backward(grad, *inputs, temperature, *saved, True, True)
            expected = reference.alignment_backward(grad.double(), *wide, temperature, *truth, True, True)
            errors += [_error(x, y) for x, y in zip((saved[0], *gradients), (truth[0], *expected))]
    return max(errors)


def _significance(backend, device, dtype):
    query, key = (x.to(device, dtype) for x in (_random(2, 2, 70, 64), _random(2, 2, 70, 64).flip(2)))
    mask = (torch.arange(70) < torch.tensor([[70], [41]])).to(device)
    found = backend.significance(query, key, mask, 0.125, None)
    return _error(found, reference.significance(query.double(), key.double(), mask, 0.125, None))


def _select_spans(backend, device, dtype):
    prior = _random(2, 70).abs().to(device, torch.float32)
    counts = torch.tensor([5, 3], device=device)
    arguments = (prior, prior > 0.1, counts, counts, 5, [0.5, 1.0, 2.0], None)
    wrong = 0.0
    for anchors in ("topk", "peaks", "stride"):
        found = backend.select_spans(*arguments, anchors)
        expected = reference.select_spans(*arguments, anchors)
        wrong = max(wrong, *((x != y).double().mean().item() for x, y in zip(found, expected)))
    return wrong


def _pooled_distance(backend, device, dtype):
    speech, text = (x.to(device, dtype) for x in (_random(2, 70, 64), _random(2, 17, 64) + 1))
    weights = [_random(2, length).abs().to(device, accumulator(dtype)) for length in (70, 17)]
    grad = _random(2).to(device, accumulator(dtype))
    found = backend.pooled_distance_forward(speech, text, *weights)
    gradients = backend.pooled_distance_backward(grad, *found[1:], *weights, dtype, True, True)
    weights = [x.double() for x in weights]
    truth = reference.pooled_distance_forward(speech.double(), text.double(), *weights)
    # The signs of the op's own differences, so that one that is about 0 does not count.
    saved = found[1].double(), truth[2]
    expected = reference.pooled_distance_backward(grad.double(), *saved, *weights, torch.float64, True, True)
    return max(_error(x, y) for x, y in zip((*found, *gradients), (*truth, *expected)))


_CASES = {
    "alignment_forward": _alignment,
    "alignment_backward": _alignment,
    "significance": _significance,
    "select_spans": _select_spans,
    "pooled_distance_forward": _pooled_distance,
    "pooled_distance_backward": _pooled_distance,
}


def failure(name: str, backend, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if `backend` computes the tiny case of `op` rightly on this device, else what went wrong.

    The result is kept for the process. Inside a CUDA graph's capture nothing is run and None is given.
    """
    case = _CASES[op]
    key = (name, case, device, dtype)
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
            _found[key] = f"the {name} backend fails a test case of {op} on {device} in {dtype}: {problem}"
        else:
            if not error <= BAR[dtype]:
                _found[key] = (
                    f"the {name} backend computes {op} wrongly on {device} in {dtype}: relative error "
                    f"{error:.1e} in a test case, at most {BAR[dtype]:.0e} expected"
                )
    return _found[key]
