"""The least time a case can take on the measured machine: of each pass memory traffic or arithmetic, the longer one.

Backward begins when forward has ended, so that the floors of the two passes are added. Counted over real frames and
tokens only. Forward reads every frame and token once and makes one product of frames and tokens. Soft backward reads
them again, makes the product again (to keep the similarities would take memory for every frame and token) and two
more (gradients of frames and of tokens); hard backward and the global level touch so little that they count as
reading and multiplying nothing. Backward writes each gradient once, padding included.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from .cases import DTYPES, Case, Inputs
from .traffic import Traffic

# Kernels of pad_kernels that read every real frame and token once, and those that write the gradient of the speech.
READING = {
    "global": re.compile(r"\b(distance_kernel|pooled_difference_kernel)\b"),
    "token": re.compile(r"\b(score_kernel|forward_kernel)\b"),
    "span": re.compile(r"\b(span_score_kernel|pool_kernel|forward_kernel)\b"),
}
WRITING = {
    "global": re.compile(r"\bgradient_kernel\b"),
    "token": re.compile(r"\b(soft_unit_kernel|hard_kernel|gather_kernel)\b"),
    "span": re.compile(r"\b(spread_kernel|gather_kernel)\b"),
}


@dataclass(frozen=True)
class Work:
    """What a pass cannot do without."""

    dtype: str
    flops: float
    read_bytes: float
    write_bytes: float

    def milliseconds(self, rates: dict[str, float | None], memory: float | None = None) -> dict[str, float]:
        """Floor by memory, by arithmetic (at the FMA peak, or torch.mm's rate if higher), and the longer of both.

        `memory`: of this traffic, where it was measured; else the rates count.
        """
        mm_gflops = self.dtype != "float32" and rates["mm_gflops_half"] or rates["mm_gflops"]
        gflops = max(rates["fma_gflops"] or 0.0, mm_gflops)
        if self.dtype in ("bfloat16", "float16"):  # float16 is the sum of two bfloat16 numbers
            gflops = max(gflops, rates.get("fma_gflops_bfloat16") or 0.0)
        if memory is None:
            memory = self.read_bytes / rates["read_gbs"] / 1e6 + self.write_bytes / rates["write_gbs"] / 1e6
        arithmetic = self.flops / gflops / 1e6
        matmul = self.flops / mm_gflops / 1e6
        return {
            "memory": memory,
            "arithmetic": arithmetic,
            "at_mm_rate": matmul,
            "floor": max(memory, arithmetic),
        }


@dataclass(frozen=True)
class Passes:
    """The work of a case: forward, and backward where the case has it."""

    forward: Work
    backward: Work | None = None
    level: str | None = None
    speech_gradient_bytes: float | None = None

    def __iter__(self) -> Iterator[Work]:
        return iter((self.forward,) if self.backward is None else (self.forward, self.backward))

    def milliseconds(self, rates: dict[str, float | None], memory: Sequence[float] = ()) -> dict[str, float]:
        """The sums of the passes' floors. `memory`: of each pass, where it was measured."""
        floors = [work.milliseconds(rates, measured) for work, measured in zip_longest(self, memory)]
        return {name: sum(floor[name] for floor in floors) for name in floors[0]}

    def kernel_bytes(self, kernel: str) -> float | None:
        """The traffic that a kernel of this name cannot do without; None where it is not known."""
        if self.level is None:
            return None
        if READING[self.level].search(kernel):
            return self.forward.read_bytes
        return self.speech_gradient_bytes if WRITING[self.level].search(kernel) else None


def passes(case: Case, inputs: Inputs) -> Passes:
    """Count the work of a case on its inputs."""
    item = torch.empty(0, dtype=DTYPES[case.dtype]).element_size()
    width = case.shape.width
    frames, tokens = inputs.speech_mask.sum(1).double(), inputs.text_mask.sum(1).double()
    real_bytes = float((frames + tokens).sum()) * width * item
    pairs = float((frames * tokens).sum())
    pooling = product = 0.0
    if case.level == "global":
        pooling = 2.0 * width * float((frames + tokens).sum())
    else:
        if case.level == "span":
            lengths = (inputs.end - inputs.start).double()
            pooling = 2.0 * width * float(lengths.sum())
            pairs = float(((lengths > 0).sum(1) * tokens).sum())
        product = 2.0 * width * pairs
    forward = Work(case.dtype, product + pooling, real_bytes, 0)
    if not case.backward:
        return Passes(forward, level=case.level)
    soft = case.level != "global" and case.mode == "soft"
    speech_gradient = float(inputs.speech.numel()) * item
    backward = Work(
        case.dtype,
        flops=3 * product + pooling if soft else 0.0,
        read_bytes=real_bytes if soft else 0.0,
        write_bytes=speech_gradient + float(inputs.text.numel()) * item,
    )
    return Passes(forward, backward, case.level, speech_gradient)


def traffic_of(work: Work, inputs: Inputs, threads: int) -> Traffic:
    """The work's traffic on these inputs, whose frames and tokens are the first ones of their rows."""
    rows = [
        values[row, :count]
        for values, mask in ((inputs.speech, inputs.speech_mask), (inputs.text, inputs.text_mask))
        for row, count in enumerate(mask.sum(1).tolist())
    ]
    return Traffic(rows if work.read_bytes else [], round(work.write_bytes), threads)
