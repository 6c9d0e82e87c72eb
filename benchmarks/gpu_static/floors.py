"""The least time that a call can take: what must be read and written, or multiplied (benchmarks.floor)."""

import functools

import torch

from benchmarks import results
from benchmarks.cases import Case, Inputs, ragged_mask
from benchmarks.floor import Passes, Work, passes
from benchmarks.gpu_static.cases import Call
from pad_kernels import select_spans

GBS = 3000.0  # memory bandwidth that the floors are at


@functools.cache
def _products() -> dict[str, float]:
    """Measured GFLOP/s of torch's products on the H100, 16-bit and 32-bit."""
    rates = results.read_json(results.FOLDER / "align_cuda.json")["rates"]
    return {"half": rates["mm_gflops_half"], "single": rates["mm_gflops"]}


def floor(call: Call) -> float:
    """Microseconds."""
    rates = {"read_gbs": GBS, "write_gbs": GBS, "fma_gflops": None, "mm_gflops": _products()["single"],
             "mm_gflops_half": _products()["half"]}  # fmt: skip
    return 1e3 * _passes(call).milliseconds(rates)["floor"]


@functools.cache
def _passes(call: Call) -> Passes:
    item = 2 if call.dtype == "bfloat16" else 4
    if call.level == "significance":
        batch, heads, length, width = call.shape
        pairs = float((ragged_mask(batch, length).sum(1).double() ** 2).sum()) * heads
        # Without the row sums of the attention's forward pass the product is made twice.
        return Passes(Work(call.dtype, 2 * 2 * pairs * width, 2.0 * batch * heads * length * width * item, 0))
    level, _, mode = call.name.partition(" ")
    case = Case(call.size, level, mode, call.direction, call.dtype)
    batch, frames, tokens, width = call.shape
    speech_mask, text_mask = ragged_mask(batch, frames), ragged_mask(batch, tokens)
    start = end = None
    if level == "span":
        prior = torch.rand(batch, frames, generator=torch.Generator().manual_seed(0)) * speech_mask
        start, end = select_spans(prior, speech_mask, text_mask.sum(1))
    speech, text = (torch.empty(batch, size, width, device="meta") for size in (frames, tokens))
    return passes(case, Inputs(speech, text, speech_mask, text_mask, None, None, start, end))
