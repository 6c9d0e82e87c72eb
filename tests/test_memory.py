"""What the native backend takes beyond its inputs: the peak of resident memory in a new process."""

import os
import subprocess
import sys

import pytest
import torch
from inputs import relative_error

from pad_kernels import pad_loss

PEAK = """
import sys, torch
import pad_kernels
from pad_kernels import pad_loss, significance

def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

def resident(key):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1]) / 1024

torch.set_num_threads(2)
torch.manual_seed(0)

def extra(function, *small, large):
    for inputs in small:
        function(*inputs)
    reset_peak()
    before = resident("VmRSS")
    function(*large)
    print(resident("VmHWM") - before)
"""

ALIGNMENT = """
def inputs(batch, frames, tokens, width):
    return tuple(torch.randn(batch, length, width).requires_grad_() for length in (frames, tokens))

def run(speech, text):
    loss = pad_loss(speech, text, level={level!r}, temperature={temperature}, backend="native")
    torch.autograd.grad(loss, (speech, text))

extra(run, inputs(2, 64, 8, 16), large=inputs(2, 8192, 512, 16))
"""

SIGNIFICANCE = """
def run(query, key):
    significance(query, key, backend="native")

extra(run, torch.randn(2, 1, 2, 64, 16), large=torch.randn(2, 1, 2, 4096, 16))
"""


def megabytes(code):
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


NEEDED = "/proc/self/clear_refs"
pytestmark = pytest.mark.skipif(not os.path.exists(NEEDED), reason="needs Linux")

GRADIENTS = 2 * (8192 + 512) * 16 * 4 / 2**20


@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_alignment(native, level, temperature):
    """1 MB per thread beside the gradients; all similarities would take 32 MB (token), 6 MB (span)."""
    assert megabytes(ALIGNMENT.format(level=level, temperature=temperature)) < GRADIENTS + 2


def test_significance(native):
    """Both attention maps of both utterances would take 256 MB."""
    assert megabytes(SIGNIFICANCE) < 2


TEN_MINUTES = SIGNIFICANCE.replace("2, 1, 2, 4096, 16", "2, 1, 1, 30000, 64")


@pytest.mark.slow
def test_significance_of_ten_minutes(native):
    """30,000 frames: an attention map would take 3,600 MB; each of two threads may pack the keys of a head."""
    assert megabytes(TEN_MINUTES) < 2 * 30000 * 64 * 4 / 2**20 + 3


KEPT = """
import torch
from pad_kernels import pad_loss
from pad_kernels.backends import library

speech = torch.randn(2, {frames}, 512).requires_grad_()
text = torch.randn(2, 8, 512)

def gradient():
    return torch.autograd.grad(pad_loss(speech, text, level="token", backend="native"), speech)[0]

def resident():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024

first, second = gradient(), gradient()
assert first.data_ptr() != second.data_ptr() and torch.equal(first, second)
place = first.data_ptr()
del first
third = gradient()
assert third.data_ptr() == place and torch.equal(second, third)
many = [gradient() for _ in range(6)]
assert len({{x.data_ptr() for x in (second, third, *many)}}) == 8 and all(torch.equal(second, x) for x in many)
before = resident()
del second, third, many
library.release_kept_memory()
print(before - resident())
"""


@pytest.mark.parametrize("frames", [9000, 12001])
def test_memory_of_a_gradient_is_used_again(native, frames):
    """Never while it is in use; and it is given back when asked for."""
    done = subprocess.run([sys.executable, "-c", KEPT.format(frames=frames)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9 * 8 * 2 * frames * 512 * 4 / 2**20


def check_large_gradient(level, dtype, width, backend):
    """Over 8 MB, written past the caches, against the same batch in parts."""
    frames = 2**23 // (8 * width * dtype.itemsize) + 1
    generator = torch.Generator().manual_seed(0)
    speech, text = (torch.randn(8, n, width, generator=generator).to(dtype) for n in (frames, 9))
    mask = torch.arange(frames) < torch.linspace(10, frames, 8).long()[:, None]

    def gradient(part):
        values = speech[part].clone().requires_grad_()
        loss = pad_loss(values, text[part], mask[part], level=level, reduction="sum", backend=backend)
        return torch.autograd.grad(loss, values)[0]

    whole, parts = gradient(slice(None)), torch.cat([gradient(slice(b, b + 4)) for b in (0, 4)])
    assert whole.isfinite().all() and (whole[~mask] == 0).all()
    assert relative_error(whole, parts) <= (1e-5 if dtype.itemsize > 2 else 1e-3)


@pytest.mark.parametrize("width", [256, 250])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", ["global", "token", "span"])
def test_large_gradients(native, level, dtype, width):
    check_large_gradient(level, dtype, width, native)
