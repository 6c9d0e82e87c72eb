"""A soak: forward and backward of tiny batches, PAD_ATTACK_STEPS (20000) times, in which memory does not grow."""

import gc
import os
from pathlib import Path

import pytest
import torch

from pad_kernels import available_backends, pad_loss

pytestmark = pytest.mark.slow

STEPS = int(os.environ.get("PAD_ATTACK_STEPS", 20_000))
MOST_GROWTH = 4 << 20  # bytes; an object of 200 bytes that stays at every step would show


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("backend", available_backends())
def test_memory_does_not_grow(backend):
    """Sizes, levels, dtypes and masks change from step to step; every eighth loss is thrown away unused."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    share = STEPS if backend == "native" else STEPS // 10
    before, total = 0, 0.0
    for step in range(share + share // 10):
        if step == share // 10:  # by now everything has been kept that is kept
            before, objects = resident(), len(gc.get_objects())
        batch, frames, tokens = 1 + step % 3, 1 + step % 29, 1 + step % 7
        dtype = (torch.float32, torch.bfloat16, torch.float64)[step % 3]
        speech, text = (
            torch.randn(batch, length, 8, generator=generator).to(dtype).requires_grad_() for length in (frames, tokens)
        )
        mask = torch.arange(frames).expand(batch, frames) < 1 + step % frames if step % 2 else None
        prior = torch.rand(batch, frames, generator=generator) if step % 5 else None
        loss = pad_loss(speech, text, mask, None, prior, level=("token", "span", "global")[step % 3],
                        temperature=(0.0, 0.1)[step // 3 % 2], backend=backend)  # fmt: skip
        if step % 8:
            loss.backward()
            total += float(speech.grad.abs().sum())
    growth = resident() - before
    print(f"{backend}: {share} steps, memory grew by {growth / 2**20:.2f} MiB")
    assert total > 0 and growth <= MOST_GROWTH, growth
    assert len(gc.get_objects()) <= objects + 1000
