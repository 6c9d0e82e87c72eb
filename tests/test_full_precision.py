"""Matrix products of the reference in float32, whatever a process has set."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from pad_kernels.backends.full_precision import full_precision

CPU = torch.device("cpu")
PER_BACKEND = hasattr(torch.backends.mkldnn, "matmul")


@pytest.fixture(params=["high", "medium", pytest.param("bf16", marks=pytest.mark.skipif(
    not PER_BACKEND, reason="torch 2.9 and newer"))])  # fmt: skip
def precision(request):
    """A setting of the process, and how to read it."""
    if request.param != "bf16":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(request.param)
        yield torch.get_float32_matmul_precision
        torch.set_float32_matmul_precision(before)
        return
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    yield lambda: matmul.fp32_precision
    matmul.fp32_precision = before


def inside(read):
    with full_precision(CPU):
        return read()


def test_the_setting_is_raised_and_given_back(precision):
    before = precision()
    assert inside(precision) in ("highest", "ieee")
    assert precision() == before
    with pytest.raises(KeyError), full_precision(CPU):
        raise KeyError
    assert precision() == before


def test_threads_share_the_setting(precision):
    """The one that leaves first does not lower it for the others."""
    before, entered, left, found = precision(), threading.Event(), threading.Event(), []

    def second():
        with full_precision(CPU):
            entered.set()
            left.wait()
            found.append(precision())

    with full_precision(CPU):
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
    left.set()
    thread.join()
    assert found[0] in ("highest", "ieee") and precision() == before


CODE = """
import torch
from pad_kernels import alignment_matrix, pad_loss, significance

generator = torch.Generator().manual_seed(0)
speech, text = (torch.randn(4, length, 256, generator=generator) for length in (300, 60))
query = 3 * torch.randn(2, 4, 300, 64, generator=generator)

def results():
    one = speech.clone().requires_grad_()
    loss = pad_loss(one, text, level="token", temperature=0.02, backend="reference")
    matrix = alignment_matrix(speech, text, temperature=0.02)
    prior = significance(query, query, backend="reference")
    return loss.detach(), *torch.autograd.grad(loss, one), matrix, prior

expected = results()
torch.set_float32_matmul_precision("medium")
assert all(torch.equal(one, other) for one, other in zip(results(), expected))
"""


def test_results_do_not_depend_on_the_setting():
    """Where the processor multiplies in bfloat16 they would; so oneDNN is free to do so here."""
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment)
