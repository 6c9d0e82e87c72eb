"""Which backend implements each op, how one is chosen, and what happens where the compiled library is missing."""

import math
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
import torch

import pad_kernels
from pad_kernels import backends, pad_loss
from pad_kernels.backends import native, self_test
from pad_kernels.backends.reference import ReferenceBackend
from pad_kernels.backends.triton import TritonBackend, _chip_reason
from pad_kernels.inputs import LEVELS
from pad_kernels.registration import OPS

SPEECH, TEXT = torch.randn(2, 9, 8), torch.randn(2, 3, 8)


def in_a_new_process(*arguments, **environment):
    """Standard output of Python with these arguments; a warning or an error fails the test."""
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def only_reference(monkeypatch):
    """As if the compiled library had not been built."""
    monkeypatch.setattr(native, "NATIVE", None)
    monkeypatch.setattr(native, "REASON", "the compiled library is missing")
    backends.forget_candidates()
    yield
    backends.forget_candidates()


def test_reference_is_always_there():
    names = pad_kernels.available_backends()
    assert names[-1] == "reference" and set(names) <= set(backends.FASTEST_FIRST)


def test_auto_takes_the_fastest(monkeypatch):
    monkeypatch.delenv("PAD_KERNELS_BACKEND", raising=False)
    cpu = torch.device("cpu")
    for op in OPS:
        fastest = pad_kernels.info.report()["ops"]["cpu"][op][0]
        backend = backends.FASTEST_FIRST[fastest]
        assert backends.select_backend(op, "auto", cpu, torch.float32) is backend
        assert backends.select_backend(op, "", cpu, torch.float32) is backend


def test_auto_falls_back(only_reference):
    assert pad_kernels.available_backends() == ["reference"]
    loss = pad_loss(SPEECH, TEXT, backend="auto")
    assert torch.equal(loss, pad_loss(SPEECH, TEXT, backend="reference"))


@pytest.mark.parametrize("level", ["token", "span", "global"])
def test_a_backend_asked_for_says_why_it_cannot(only_reference, level):
    with pytest.raises(ValueError, match="'native' cannot run .* the compiled library is missing"):
        pad_loss(SPEECH, TEXT, level=level, backend="native")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on the CPU")
def test_triton_does_not_run_on_the_cpu():
    with pytest.raises(ValueError, match="'triton' cannot run alignment_forward on cpu"):
        pad_loss(SPEECH, TEXT, backend="triton")
    with pytest.raises(ValueError, match="'triton' cannot run pooled_distance_forward on cpu"):
        pad_loss(SPEECH, TEXT, level="global", backend="triton")


@pytest.mark.parametrize("capability, reason", [((7, 5), "needs compute capability 8.0, not 7.5"), ((8, 6), None)])
def test_triton_is_not_taken_on_a_gpu_without_the_matrix_units_it_needs(monkeypatch, capability, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr("pad_kernels.backends.triton._missing_reason", lambda: None)
    monkeypatch.setattr("torch.version.hip", None)
    _chip_reason.cache_clear()
    found = TritonBackend().unsupported_reason("alignment_forward", torch.device("cuda", 0), torch.float16, 768)
    _chip_reason.cache_clear()
    assert found is None if reason is None else reason in found


def test_environment_falls_back_for_ops_that_a_backend_lacks(monkeypatch):
    """As native has no `significance` on a GPU."""
    monkeypatch.setattr("pad_kernels.backends.self_test.failure", lambda *arguments: None)
    monkeypatch.setattr("pad_kernels.backends.native._gpu_unsupported_reason", lambda index: None)
    monkeypatch.setattr(TritonBackend, "unsupported_reason", lambda *arguments: "not here")
    backends.forget_candidates()
    monkeypatch.setenv("PAD_KERNELS_BACKEND", "native")
    gpu = torch.device("cuda", 0)
    with pytest.raises(ValueError, match="the native backend has no significance on cuda"):
        backends.select_backend("significance", "native", gpu, torch.float32)
    assert backends.select_backend("significance", "", gpu, torch.float32).name == "reference"
    assert backends.select_backend("alignment_forward", "", gpu, torch.float32).name == "native"
    monkeypatch.setenv("PAD_KERNELS_BACKEND", "triton")
    with pytest.raises(ValueError, match="not here"):
        backends.select_backend("significance", "", torch.device("cpu"), torch.float32)
    backends.forget_candidates()


class _Broken(ReferenceBackend):
    """The reference, but for one op."""

    name = "broken"

    def __init__(self, op):
        right = getattr(self, op)

        def wrong(*arguments):
            if op == "significance":
                return 1 / 0
            found = right(*arguments)
            changed = (1.01 * x if x.is_floating_point() else x + 1 for x in found)
            return type(found)(*changed) if hasattr(found, "_fields") else tuple(changed)

        setattr(self, op, wrong)


@pytest.mark.parametrize("op", OPS)
def test_the_self_test_finds_a_broken_backend(monkeypatch, op):
    monkeypatch.setattr(self_test, "_found", {})
    cpu = torch.device("cpu")
    failure = self_test.failure(_Broken(op), op, cpu, torch.float32)
    assert re.search("division by zero" if op == "significance" else "computes .* wrongly on cpu", failure)
    right = ReferenceBackend()
    right.name = "broken"
    assert self_test.failure(right, op, cpu, torch.float32) == failure  # kept
    monkeypatch.setattr(self_test, "_found", {})
    assert self_test.failure(right, op, cpu, torch.float32) is None


@pytest.mark.parametrize("of_backward", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_the_self_test_finds_a_broken_loss(monkeypatch, level, of_backward):
    """A whole loss is computed in its own way by some backends, whose ops may be right."""
    monkeypatch.setattr(self_test, "_found", {})
    op = "pooled_distance_forward" if level == "global" else "alignment_forward"
    broken = ReferenceBackend()
    broken.name = "broken"
    loss_forward, loss_backward = broken.loss_forward, broken.loss_backward
    if of_backward:
        broken.loss_backward = lambda *given: tuple(0 * x + math.nan for x in loss_backward(*given))
    else:
        broken.loss_forward = lambda request: (1.01 * loss_forward(request)[0], loss_forward(request)[1])
    what = broken, op, torch.device("cpu"), torch.float32
    assert self_test.failure(*what) is None
    assert f"computes the {level} loss wrongly" in self_test.failure(*what, level)


@pytest.mark.parametrize("level", LEVELS)
def test_the_self_test_finds_a_loss_that_is_broken_once_it_is_repeated(monkeypatch, level):
    monkeypatch.setattr(self_test, "_found", {})
    broken, calls = ReferenceBackend(), Counter()
    broken.name = "broken"
    loss_forward = broken.loss_forward

    def forward(request):
        calls[request.options] += 1
        loss, record = loss_forward(request)
        return loss * (1.01 if calls[request.options] > 2 else 1), record

    broken.loss_forward = forward
    what = broken, "alignment_forward", torch.device("cpu"), torch.float32, level
    assert f"computes the {level} loss wrongly" in self_test.failure(*what)


@pytest.mark.parametrize("op", ["alignment_backward", "pooled_distance_backward"])
def test_the_self_test_finds_gradients_that_are_nan(monkeypatch, op):
    """Not the first of the numbers that are compared."""
    monkeypatch.setattr(self_test, "_found", {})
    broken = ReferenceBackend()
    broken.name = "broken"
    right = getattr(broken, op)
    setattr(broken, op, lambda *given: tuple(torch.full_like(x, math.nan) for x in right(*given)))
    assert "relative error nan" in self_test.failure(broken, op, torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("message", ["Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_NOT_INITIALIZED", None])
def test_a_full_gpu_says_nothing_of_a_backend(monkeypatch, message):
    monkeypatch.setattr(self_test, "_found", {})
    full = ReferenceBackend()
    full.name = "full"

    def fail(*given):
        raise RuntimeError(message) if message else torch.OutOfMemoryError("too much")

    full.select_spans = fail
    what = full, "select_spans", torch.device("cpu"), torch.float32
    assert self_test.failure(*what) is None
    assert "could not be tested on cpu" in self_test.untested_reason(*what, None)
    del full.select_spans
    assert self_test.failure(*what) is None and not self_test.untested_reason(*what, None)


@pytest.mark.parametrize("warn_only", [False, True])
def test_deterministic_mode_says_nothing_of_a_backend(monkeypatch, warn_only):
    """On a GPU the reference itself may refuse to run in it."""
    monkeypatch.setattr(self_test, "_found", {})
    strict, modes = ReferenceBackend(), []
    strict.name, select = "strict", strict.select_spans

    def noted(inputs):
        modes.append(torch.are_deterministic_algorithms_enabled())
        return select(inputs)

    strict.select_spans = noted
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        assert self_test.failure(strict, "select_spans", torch.device("cpu"), torch.float32) is None
        assert torch.are_deterministic_algorithms_enabled() and modes and not any(modes)
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_default_device_changes_nothing():
    """Not even one that has no memory."""
    code = """
        import torch
        from pad_kernels import pad_loss, select_spans, significance
        from pad_kernels.backends import self_test, triton
        from pad_kernels.backends.native import BACKEND

        cpu = torch.device("cpu")
        generator = torch.Generator().manual_seed(0)
        speech, text = (torch.randn(2, n, 16, generator=generator, requires_grad=True) for n in (30, 5))
        mask, prior = torch.ones(2, 30, dtype=torch.bool), torch.rand(2, 30, generator=generator)

        def found():
            every = [significance(speech[:, None], speech[:, None], mask), *select_spans(prior, mask, 5)]
            for level in ("token", "span", "global"):
                for reduction in ("mean", "none"):
                    loss = pad_loss(speech, text, mask, None, prior, level=level, reduction=reduction)
                    every += [loss.detach(), *torch.autograd.grad(loss.sum(), (speech, text))]
            return every

        expected = found()
        torch.set_default_device("meta")
        for one, other in zip(found(), expected):
            assert one.device == cpu and torch.equal(one, other)
        for op in ("alignment_forward", "pooled_distance_forward", "select_spans", "significance"):
            if BACKEND.unsupported_reason(op, cpu, torch.float32) is None:
                assert self_test.failure(BACKEND, op, cpu, torch.float32) is None
                assert self_test.failure(BACKEND, op, cpu, torch.float32, "span") is None
    """
    in_a_new_process("-c", textwrap.dedent(code))


def test_a_failing_self_test_on_a_gpu(monkeypatch):
    """`auto` warns and takes the next; a backend asked for by name is an error."""
    gpu = torch.device("cuda", 0)
    for backend in backends.FASTEST_FIRST.values():
        monkeypatch.setattr(type(backend), "unsupported_reason", lambda *arguments: None)
    monkeypatch.setattr(
        backends.self_test,
        "failure",
        lambda backend, *rest: None if backend.name == "reference" else f"{backend.name} is broken",
    )
    backends.forget_candidates()
    backends._warn.cache_clear()
    with pytest.raises(RuntimeError, match="triton is broken"):
        backends.select_backend("significance", "triton", gpu, torch.float32)
    with pytest.warns(RuntimeWarning) as warned:
        assert backends.select_backend("significance", "auto", gpu, torch.float32)
    assert "triton is broken; another backend is used" in str(warned[0].message)
    backends.forget_candidates()


def test_check_of_the_installation():
    output = in_a_new_process("-m", "pad_kernels.info", "--check")
    assert "all ops are right on all backends of this machine" in output


def test_environment_sets_the_default(only_reference, monkeypatch):
    monkeypatch.setenv("PAD_KERNELS_BACKEND", "native")
    with pytest.raises(ValueError, match="compiled library is missing"):
        pad_loss(SPEECH, TEXT)
    pad_loss(SPEECH, TEXT, backend="reference")
    pad_loss(SPEECH, TEXT, backend="auto")
    monkeypatch.setenv("PAD_KERNELS_BACKEND", "fastest")
    with pytest.raises(ValueError, match="variable PAD_KERNELS_BACKEND: got 'fastest', expected one of"):
        pad_loss(SPEECH, TEXT)


def test_unknown_backend():
    with pytest.raises(ValueError, match="got 'cuda', expected one of auto, triton, native, reference"):
        pad_loss(SPEECH, TEXT, backend="cuda")


HIDE_LIBRARY = "import sys; sys.modules['pad_kernels._native'] = None\n"


def test_import_without_the_compiled_library():
    code = HIDE_LIBRARY + (
        "import warnings, torch, pad_kernels\n"
        "from pad_kernels import info\n"
        "warnings.filterwarnings('ignore', 'pad_kernels: plain PyTorch is used', RuntimeWarning)\n"
        "loss = pad_kernels.pad_loss(torch.randn(2, 9, 8), torch.randn(2, 3, 8))\n"
        "print(pad_kernels.available_backends(), loss.item() > 0, info.report()['backends']['native'])"
    )
    output = in_a_new_process("-c", code)
    assert output.startswith("['reference'] True ") and "could not be loaded" in output


def test_import_is_light():
    """torch alone: neither the training package nor what it needs."""
    code = "import sys, pad_kernels; print({'transformers', 'torchaudio', 'triton', 'pad'} & {*sys.modules})"
    assert in_a_new_process("-c", code).strip() == "set()"


def test_information():
    output = in_a_new_process("-m", "pad_kernels.info")
    for word in ("pad_kernels", "torch", "threads", "reference", "native", "triton", *OPS):
        assert word in output
    report = pad_kernels.info.report()
    assert report["backends"]["reference"] is None and report["backends"]["triton"]
    available = [name for name, reason in report["backends"].items() if reason is None]
    assert available == pad_kernels.available_backends()
    assert all("reference" in report["ops"]["cpu"][op] for op in OPS)


def test_support_table():
    """Of the backends as they are, installed or not."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in pad_kernels.info.support_table().split("\n")
    ]
    assert rows[0] == ["op", "reference, any device", "native, cpu", "native, cuda", "triton, cuda"]
    assert [row[0] for row in rows[2:]] == [f"`{op}`" for op in OPS]
    table = {row[0].strip("`"): row[1:] for row in rows[2:]}
    assert all(row[:2] == ["yes", "yes"] for row in table.values())
    assert table["significance"][2] == "" and table["significance"][3] == "yes"
    for op, row in table.items():
        assert (row[3] == "yes") == (op in backends.FASTEST_FIRST["triton"].ops)
    assert in_a_new_process("-m", "pad_kernels.info", "--support").strip() == pad_kernels.info.support_table()


def test_what_one_backend_lacks_on_a_device():
    gpu = torch.device("cuda", 0)
    native_backend = backends.FASTEST_FIRST["native"]
    reason = native_backend.unsupported_reason("significance", gpu, torch.float32)
    assert reason == "the native backend has no significance on cuda" or native.REASON == reason


def test_public_names():
    assert all(hasattr(pad_kernels, name) for name in pad_kernels.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pad_kernels.nothing
