"""The least time a case can take on the measured machine: memory traffic or arithmetic, whichever is longer.

Counted over real frames and tokens only. Forward reads every frame and token once and makes one product of
frames and tokens. Soft backward reads the frames again, makes the product again (to keep the similarities
would take memory for every frame and token) and two more (gradients of frames and of tokens); hard backward
and the global level touch so little that their products count as none. Backward writes each gradient once,
padding included.
"""

import re
from dataclasses import dataclass

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
    """What a case cannot do without."""

    dtype: str
    flops: float
    read_bytes: float
    write_bytes: float
    reads: int = 1  # how often `read_bytes` counts the inputs
    speech_gradient_bytes: float | None = None
    level: str | None = None

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

    def kernel_bytes(self, kernel: str) -> float | None:
        """The traffic that a kernel of this name cannot do without; None where it is not known."""
        if self.level is None:
            return None
        if READING[self.level].search(kernel):
            return self.read_bytes / self.reads
        return self.speech_gradient_bytes if WRITING[self.level].search(kernel) else None


def work(case: Case, inputs: Inputs) -> Work:
    """Count the work of a case on its inputs."""
    item = torch.empty(0, dtype=DTYPES[case.dtype]).element_size()
    width = case.shape.width
    frames, tokens = inputs.speech_mask.sum(1).double(), inputs.text_mask.sum(1).double()
    real_bytes = float((frames + tokens).sum()) * width * item
    speech_gradient = float(inputs.speech.numel()) * item if case.backward else 0.0
    text_gradient = float(inputs.text.numel()) * item if case.backward else 0.0
    reads, products, pooling = 1, 0, 0.0
    pairs = float((frames * tokens).sum())
    if case.level == "global":
        pooling = 2.0 * width * float((frames + tokens).sum())
    else:
        products = 1
        if case.level == "span":
            lengths = (inputs.end - inputs.start).double()
            pooling = 2.0 * width * float(lengths.sum())
            pairs = float(((lengths > 0).sum(1) * tokens).sum())
        if case.backward and case.mode == "soft":
            reads, products = 2, 4
            pooling *= 2
    flops = 2.0 * width * pairs * products + pooling
    written = speech_gradient + text_gradient
    return Work(case.dtype, flops, reads * real_bytes, written, reads, speech_gradient or None, case.level)


def traffic(inputs: Inputs, work: Work, threads: int) -> Traffic:
    """This work's traffic on these inputs, whose frames and tokens are the first ones of their rows."""
    rows = [
        values[row, :count]
        for values, mask in ((inputs.speech, inputs.speech_mask), (inputs.text, inputs.text_mask))
        for row, count in enumerate(mask.sum(1).tolist())
    ]
    return Traffic(rows, work.reads, round(work.write_bytes), threads)
