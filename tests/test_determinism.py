"""The same inputs give the same bits, on every run and with any number of threads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from inputs import make_inputs
from test_loss import make

from pad_kernels import pad_loss, select_spans, significance


def alignment_bits(inputs, temperature, backend):
    speech, text = (x.detach().requires_grad_() for x in inputs[:2])
    outputs = torch.ops.pad_kernels.alignment_forward(speech, text, *inputs[2:], temperature, backend)
    return *outputs, *torch.autograd.grad(outputs[0].sum(), (speech, text))


def assert_same_bits(function):
    runs = []
    for threads in (1, 2, 3, 1, 2):
        torch.set_num_threads(threads)
        runs.append(function())
    for run in runs[1:]:
        for one, other in zip(runs[0], run):
            assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_alignment(native, batch, dtype, units, temperature):
    inputs = make_inputs(batch, 300, 33, 70, units=units, dtype=dtype)
    assert_same_bits(lambda: alignment_bits(inputs, temperature, native))


def test_significance(native):
    query, key = torch.randn(2, 3, 2, 200, 32, generator=torch.Generator().manual_seed(0))
    assert_same_bits(lambda: (significance(query, key, backend=native),))


@pytest.mark.parametrize("anchors", ["topk", "peaks", "stride"])
def test_select_spans(native, anchors):
    prior = torch.rand(8, 3000, generator=torch.Generator().manual_seed(0))
    assert_same_bits(lambda: select_spans(prior, None, 40, anchors=anchors, backend=native))


@pytest.mark.parametrize("level", ["global", "token", "span"])
def test_loss(native, level):
    arguments = make(4, 300, 30, 64, dtype=torch.bfloat16)

    def run():
        speech, text = (x.detach().requires_grad_() for x in arguments[:2])
        loss = pad_loss(speech, text, *arguments[2:], level=level, backend=native)
        return loss, *torch.autograd.grad(loss, (speech, text))

    assert_same_bits(run)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_after_use(native, threads):
    """The child has none of the parent's threads, and may not wait for them."""
    arguments = make(8, 200, 30, 32)
    torch.set_num_threads(threads)
    expected = pad_loss(*arguments, backend=native)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if torch.equal(pad_loss(*arguments, backend=native), expected) else 1)
        finally:
            os._exit(1)  # or it would run the tests that follow
    guard = threading.Timer(120, os.kill, [pid, 9])
    guard.start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    guard.cancel()
    assert status == 0


CROWDED = """
import os, resource, sys, torch, pad_kernels
torch.set_num_threads(1)
arguments = torch.randn(8, 200, 32), torch.randn(8, 30, 32)
expected = pad_kernels.pad_loss(*arguments, backend="native")
pid = os.fork()
if pid == 0:
    torch.set_num_threads(8)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
    os._exit(0 if torch.equal(pad_kernels.pad_loss(*arguments, backend="native"), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
@pytest.mark.parametrize("megabytes", [4, 20, 40])
def test_threads_that_cannot_start_in_a_fork(native, megabytes):
    """A stack takes 8 MB: none, or a few of them, get theirs."""
    subprocess.run([sys.executable, "-c", CROWDED, str(megabytes)], check=True, timeout=120)


FORK = """
import os, sys, torch, pad_kernels
torch.set_num_threads(2)
arguments = torch.randn(8, 200, 32), torch.randn(8, 30, 32)
torch.randn(2000, 2000).exp().sum()  # torch's threads have begun, and none of this package's kernels has run
pid = os.fork()
loss = pad_kernels.pad_loss(*arguments, backend="native")
if pid == 0:
    os._exit(0 if loss.isfinite() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_before_the_first_use(native):
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


@pytest.mark.parametrize("level", ["global", "token", "span"])
def test_repeated_runs(backend, level):
    arguments = make(4, 300, 30, 64)
    runs = [pad_loss(*arguments, level=level, backend=backend) for _ in range(3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
