"""What eager PyTorch takes for the same losses, by the same model."""

from types import SimpleNamespace

import torch

from benchmarks import providers, significance_bench
from benchmarks.cases import DTYPES, Inputs
from benchmarks.gpu_static import model, recording
from benchmarks.gpu_static.cases import Call, make_arguments
from benchmarks.gpu_static.operators import Operator


def operators(call: Call) -> list[Operator]:
    """The kernels of eager PyTorch for a call."""
    found: list[Operator] = []
    if call.level == "significance":
        _significance(call, found)
        return found
    batch, _, tokens, _ = call.shape
    arguments = make_arguments(call, batch, "meta")
    spans = torch.empty(batch, 3 * tokens, dtype=torch.int32, device="meta") if call.level == "span" else None
    with recording.Operators(found), torch.set_grad_enabled(call.backward):
        speech, text = (x.requires_grad_(call.backward) for x in arguments[:2])
        inputs = Inputs(speech, text, *arguments[2:], spans, spans)
        loss = providers.eager(inputs, call.level, call.temperature)
        if call.backward:
            torch.autograd.grad(loss, (speech, text))
    return found


def _significance(call: Call, found: list[Operator]) -> None:
    batch, heads, length, width = call.shape
    query, key = torch.empty(2, batch, heads, length, width, dtype=DTYPES[call.dtype], device="meta")
    mask = torch.empty(batch, length, dtype=torch.bool, device="meta")
    with recording.Operators(found):
        significance_bench.eager(SimpleNamespace(query=query, key=key, mask=mask))


def predict(call: Call, chip: model.Chip, constants: model.Constants) -> float:
    """Microseconds of eager PyTorch."""
    caches = model.Caches(chip.level2_bytes * constants.kept_share)
    found = operators(call)
    kernels = sum(model.of_operator(one, caches, chip, constants).microseconds for one in found)
    return kernels + constants.gap * len(found)
