"""Every backend of a GPU against the float64 reference at real sizes; run with `pytest -m gpu` (and `-m 'gpu and
slow'` for the soak and the sanitizers)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_device import DEVICE, DRY_RUN, GPU, few, needs_gpu, serving, sized, times, to_device
from inputs import KINDS, Inputs, make_inputs, misaligned, relative_error
from test_alignment import check, random_grad, run
from test_significance import make as make_significance
from test_significance import row_normalizer

from pad_kernels import PADLoss, pad_loss, select_spans, significance

pytestmark = needs_gpu

# Batch, frames, tokens, width: those of the benchmark; odd; more tokens than any tile.
SIZES = [(32, 750, 48, 768), (8, 1500, 128, 1024), (128, 250, 24, 768), (3, 777, 301, 520), (1, 1, 1, 8)]
SIZES = [sized(*SIZES[0])] if DRY_RUN else SIZES
# One case of each path of the CUDA kernels: the sanitizers take minutes.
SANITIZED = "test_masks and native" + ("" if DRY_RUN else " and bfloat16 and ragged")
SIGNIFICANCE_SIZES = [(32, 12, 750, 64), (2, 3, 3001, 80), (1, 2, 513, 256)]
LEVELS = ("global", "token", "span")
BAR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", few(BAR), ids=lambda dtype: str(dtype)[6:])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 0.1], ids=["hard", "soft"])
SPANS = pytest.mark.parametrize("spans", [False, True], ids=["frames", "spans"])


def on_gpu(inputs: Inputs) -> Inputs:
    return Inputs(*(None if x is None else x.to(DEVICE) for x in inputs))


@pytest.fixture(params=["native", "triton"])
def gpu(request) -> str:
    """Each backend that computes the alignment on this GPU."""
    if request.param not in serving("alignment_forward"):
        pytest.skip(f"{request.param} does not serve this GPU")
    return request.param


def batch_of(frames, tokens, width, batch, dtype=torch.bfloat16, seed=0):
    """The arguments of pad_loss: ragged, NaN in the padding, on the GPU."""
    inputs = on_gpu(make_inputs(*sized(batch, frames, tokens, width), dtype=dtype, seed=seed))
    prior = torch.rand(inputs.token_mask.shape, device=DEVICE) * inputs.token_mask
    return inputs.speech, inputs.text, inputs.frame_weights > 0, inputs.token_mask, inputs.frame_weights, prior


def gradients_of(speech, text, *others, **options):
    """The loss, and the gradients of both embeddings."""
    leaves = [values.detach().requires_grad_() for values in (speech, text)]
    loss = pad_loss(*leaves, *others, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@TEMPERATURES
@SPANS
@pytest.mark.parametrize("size", SIZES, ids=str)
@DTYPES
def test_alignment_at_real_sizes(gpu, dtype, size, spans, temperature):
    check(on_gpu(make_inputs(*size, units=3 * size[2] if spans else None, dtype=dtype)), temperature, gpu)


@TEMPERATURES
@SPANS
@pytest.mark.parametrize("kind", few(KINDS))
@DTYPES
def test_masks(gpu, dtype, kind, spans, temperature):
    shape = sized(4, 300, 70, 128)
    inputs = make_inputs(*shape, kind=kind, units=shape[2] + 20 if spans else None, dtype=dtype, seed=4)
    check(on_gpu(inputs), temperature, gpu)


@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("temperature", [1e-9, 1e-6])
def test_a_very_low_temperature_is_nearly_hard(gpu, level, temperature):
    """One place of rounding in a score is a factor without bound there."""
    speech, text, *others = batch_of(300, 40, 256, 4, dtype=torch.float32)
    soft, hard = (
        gradients_of(speech, text, *others, level=level, temperature=value, backend=gpu) for value in (temperature, 0.0)
    )
    for found, expected in zip(soft, hard, strict=True):
        assert relative_error(found, expected) <= 1e-4


@SPANS
@DTYPES
def test_gradients_where_a_product_follows_a_product(gpu, dtype, spans):
    """Triton 3.4.0 to 3.6 feeds the transpose of a product wrongly to another product on Hopper."""
    shape = sized(4, 512, 64, 256)
    check(on_gpu(make_inputs(*shape, kind="full", units=4 * shape[2] if spans else None, dtype=dtype)), 0.1, gpu)


@pytest.mark.parametrize("given", [False, True], ids=["computed", "given"])
@pytest.mark.parametrize("shape", [(2, 2, 40, 16)] if DRY_RUN else SIGNIFICANCE_SIZES, ids=str)
@DTYPES
def test_significance(dtype, shape, given):
    query, key, mask = to_device(*make_significance(*shape, dtype=dtype))
    scale = shape[3] ** -0.5
    normalizer = row_normalizer(query, key, mask, scale) if given else None
    if "triton" not in serving("significance"):
        pytest.skip("triton does not serve this GPU")
    found = significance(query, key, mask, lse=normalizer, backend="triton")
    expected = torch.cat([significance(q[None].double(), k[None].double(), m[None], backend="reference")
                          for q, k, m in zip(query, key, mask)])  # fmt: skip
    assert relative_error(found, expected) <= BAR[dtype]


@pytest.mark.parametrize("anchors", ["topk", "peaks", "stride"])
def test_select_spans_as_on_the_cpu(anchors):
    prior = torch.rand(16, 1500, generator=torch.Generator().manual_seed(0))
    counts = torch.randint(1, 129, (16,), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(1500) < torch.linspace(600, 1500, 16)[:, None]
    found = select_spans(*to_device(prior, mask, counts), anchors=anchors)
    expected = select_spans(prior, mask, counts, anchors=anchors)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(found, expected))


@pytest.mark.parametrize("level", LEVELS)
@DTYPES
def test_loss_against_the_reference(dtype, level):
    *others, speech_prior, text_prior = batch_of(750, 48, 768, 16, dtype)
    priors = (prior.masked_fill(~mask, torch.nan) for prior, mask in zip((speech_prior, text_prior), others[2:]))
    arguments = (*others, *priors)

    def loss_and_gradients(arguments, backend):
        speech, text = (x.detach().requires_grad_() for x in arguments[:2])
        loss = pad_loss(speech, text, *arguments[2:], level=level, backend=backend)
        # Scaled as in training with float16, where the smallest gradients would be lost.
        return loss, *torch.autograd.grad(4096 * loss, (speech, text))

    found = loss_and_gradients(arguments, "auto")
    wide = [x.double() if x.is_floating_point() else x for x in arguments]
    for value, correct in zip(found, loss_and_gradients(wide, "reference")):
        assert relative_error(value, correct) <= BAR[dtype]


@pytest.mark.parametrize("reduction", few(["mean", "none"]))
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16]), ids=lambda dtype: str(dtype)[6:])
def test_a_kernel_started_again(dtype, level, reduction):
    """What was compiled for one call serves others: of other sizes, masks, priors, strides and places in memory."""
    shapes = [(2, 40, 5, 64), (1, 40, 5, 64), (2, 33, 1, 64), (3, 48, 16, 128), (1, 1, 1, 64)]
    for shape in shapes[: times(len(shapes))] * 3:  # the third time a call is repeated from a recording
        for change in (lambda x: x, misaligned, lambda x: x.repeat_interleave(2, 1)[:, ::2]):
            batch, frames, tokens, width = shape
            speech, text, *sides = map(change, batch_of(frames, tokens, width, batch, dtype))
            sides[3 if tokens % 2 else 2] = None
            sides[1] = sides[1].long() if tokens == 5 else sides[1]

            def loss_and_gradients(speech, text, backend, sides=sides):
                speech, text = (x.detach().requires_grad_() for x in (speech, text))
                loss = pad_loss(speech, text, *sides, level=level, reduction=reduction, backend=backend)
                return loss, *torch.autograd.grad(loss.sum(), (speech, text))

            found = loss_and_gradients(speech, text, "auto")
            correct = loss_and_gradients(speech.double(), text.double(), "reference")
            for one, other in zip(found, correct):
                assert relative_error(one, other) <= BAR[dtype], shape


@TEMPERATURES
@SPANS
def test_twenty_runs_give_the_same_bits(gpu, spans, temperature):
    shape = sized(16, 750, 48, 768)
    inputs = on_gpu(make_inputs(*shape, units=3 * shape[2] if spans else None, dtype=torch.bfloat16))
    first = run(inputs, temperature, gpu, random_grad(inputs))
    for _ in range(times(19)):
        again = run(inputs, temperature, gpu, random_grad(inputs))
        assert all(torch.equal(one, other) for one, other in zip(first, again))


@pytest.mark.parametrize("level", LEVELS)
def test_cuda_graph(level):
    """A captured step, replayed on other data, gives what a step without a graph gives."""
    arguments = [x.clone() for x in batch_of(300, 32, 256, 4)]
    speech, text = (x.requires_grad_() for x in arguments[:2])

    def step():
        loss = pad_loss(speech, text, *arguments[2:], level=level)
        return loss, *torch.autograd.grad(loss, (speech, text))

    captured, replay = GPU.capture(step)
    for buffer, fresh in zip(arguments, batch_of(300, 32, 256, 4, seed=1)):
        buffer.data.copy_(fresh)
    replay()
    for one, other in zip(captured, step()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("level", few(LEVELS))
def test_compiled(level):
    arguments = batch_of(300, 32, 256, 4)
    module = PADLoss(level=level)
    found = torch.compile(module, fullgraph=True)(*arguments)
    assert relative_error(found, module(*arguments)) <= 1e-6


def test_autocast():
    arguments = batch_of(300, 32, 256, 4, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = pad_loss(*arguments)
    assert loss.dtype == torch.float32 and relative_error(loss, pad_loss(*arguments)) <= 1e-2


def test_another_stream_than_the_default():
    arguments = batch_of(750, 48, 768, 8)
    expected = pad_loss(*arguments)
    with GPU.another_stream():
        found = pad_loss(*arguments)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("level", LEVELS)
def test_no_wait_for_the_gpu(level):
    arguments = batch_of(300, 32, 256, 4)
    speech = arguments[0].requires_grad_()
    pad_loss(*arguments, level=level).backward()
    with GPU.no_waiting():
        pad_loss(speech, *arguments[1:], level=level).backward()


# In widths of the text: spans are pooled once, three for each token here, and in half precision what rounding leaves
# over is kept beside them until they are scored.
@pytest.mark.parametrize("level, copies", [("token", 3), ("span", 2 * 3 + 1)], ids=["token", "span"])
def test_memory_beyond_inputs_and_gradients(level, copies):
    """Far from the matrix of similarities, let alone normalized copies of the speech."""
    arguments = batch_of(1500, 128, 1024, 8)
    speech, text = (x.requires_grad_() for x in arguments[:2])

    def step():
        return torch.autograd.grad(pad_loss(*arguments, level=level, temperature=0.0), (speech, text))

    step()
    extra = GPU.peak_bytes(step) - speech.nbytes - text.nbytes
    assert extra < copies * text.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_ten_thousand_steps_without_growth(level):
    arguments = batch_of(200, 24, 128, 4)
    speech = arguments[0].requires_grad_()

    def steps(count):
        for _ in range(count):
            (speech.grad,) = torch.autograd.grad(pad_loss(*arguments, level=level), speech)
        return GPU.memory_in_use()

    allocated, free = steps(times(100))
    allocated_after, free_after = steps(times(10_000))
    assert allocated_after == allocated and free - free_after < 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("tool", few(["memcheck", "racecheck"]))
def test_compute_sanitizer(tool):
    """The CUDA kernels once more, under NVIDIA's own checker."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not DRY_RUN and not Path(sanitizer).exists():
        pytest.skip("compute-sanitizer is not installed")
    under = [] if DRY_RUN else [sanitizer, "--tool", tool, "--error-exitcode", "7"]
    # Not the checkout but the package that runs here: its library is beside it.
    as_here = ["-c", Path(__file__).parents[1] / "pyproject.toml", "-o", "pythonpath=", "-o", "addopts="]
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *as_here,
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        SANITIZED,
    ]
    done = subprocess.run([*under, *tests], capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-4000:]
