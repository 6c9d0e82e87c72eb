"""The Triton kernels under the interpreter against the float64 reference; test_triton.py runs this file."""

import sys

import numpy
import pytest
import torch
from conftest import _Dirty
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import KINDS, Inputs, make_inputs, make_mask, misaligned, relative_error
from test_alignment import BAR, NANS, check_nan, check_units, random_grad, strided, truth
from test_significance import make, row_normalizer
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from benchmarks.interpreter import make_fast
from pad_kernels import pad_loss
from pad_kernels.backends.reference import BACKEND as reference
from pad_kernels.backends.triton import BACKEND as backend
from pad_kernels.inputs import ANCHORS, LEVELS, REDUCTIONS, AlignmentInputs, Needed, PoolingInputs, SpanInputs

make_fast()
significance = backend.significance
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SPANS = pytest.mark.parametrize("spans", [False, True], ids=["frames", "spans"])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.0, 0.1], ids=["hard", "soft"])
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(autouse=True, scope="module")
def fresh_memory_is_nan():
    """What a kernel forgets to write is NaN, not an old zero."""
    patch = pytest.MonkeyPatch()
    for name, module in list(sys.modules.items()):
        if name.startswith("pad_kernels.backends.triton.") and hasattr(module, "torch"):
            patch.setattr(module, "torch", _Dirty())
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="module")
def operands_are_cut_to_tf32():
    """The interpreter multiplies float32 as it is; a GPU cuts the operands of a tf32 product to 11 bits."""
    multiply = InterpreterBuilder.create_dot

    def cut(operand):
        if operand.data.dtype != numpy.float32:
            return operand
        return TensorHandle((operand.data.view(numpy.int32) & -8192).view(numpy.float32), operand.dtype)

    def create_dot(self, left, right, sum, input_precision, *options):
        if str(input_precision).endswith("TF32"):
            left, right = cut(left), cut(right)
        return multiply(self, left, right, sum, input_precision, *options)

    patch = pytest.MonkeyPatch()
    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    yield
    patch.undo()


def run(inputs: Inputs, temperature: float, grad: torch.Tensor, needs=(True, True)):
    saved = backend.alignment_forward(inputs.at(temperature))
    return *saved, *backend.alignment_backward(grad, inputs.at(temperature), saved, Needed(*needs))


def check(inputs: Inputs, temperature: float):
    dtype, grad = inputs.speech.dtype, random_grad(inputs)
    found = run(inputs, temperature, grad)
    expected = truth(inputs, temperature, grad, found[1])
    assert [x.dtype for x in found] == [torch.float32, torch.int64, torch.float32, dtype, dtype]
    tolerance = 2e-6 if dtype != torch.float16 or inputs.start is None else 2e-5
    check_units(inputs, temperature, found[1], expected[1], tolerance / (temperature or 1))
    names = ("similarity", "unit", "log_normalizer", "grad_speech", "grad_text")
    for name, value, correct in zip(names, found, expected):
        if name != "unit":
            assert value.isfinite().all(), name
            assert relative_error(value, correct) <= BAR[dtype], name
    taking_part = found[1] >= 0
    assert (found[0][~taking_part] == 0).all() and (found[2][~taking_part] == 0).all()
    assert (found[3][inputs.frame_prior <= 0] == 0).all()
    assert (found[4][~inputs.token_mask] == 0).all()


# Batch, frames, tokens, width: one of each; odd; several tiles of units, of tokens, of columns and parts.
SHAPES = [
    (1, 1, 1, 8),
    (3, 37, 1, 24),
    (2, 1, 5, 8),
    (1, 130, 49, 64),
    (1, 65, 100, 40),
    (1, 70, 17, 200),
    (1, 33, 6, 520),
]


def turn(*places: int) -> torch.dtype:
    """The dtypes take turns: all of them for each case are for `-m slow`."""
    return DTYPES[sum(places) % len(DTYPES)]


def check_shape(dtype, shape, spans, temperature):
    check(make_inputs(*shape, units=min(2 * shape[2] + 1, 140) if spans else None, dtype=dtype), temperature)


def check_masks(dtype, kind, spans, temperature):
    """Ragged, left-padded, with holes, empty; whatever takes no part is NaN."""
    check(make_inputs(2, 70, 19, 40, kind=kind, units=21 if spans else None, dtype=dtype, seed=4), temperature)


@TEMPERATURES
@SPANS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, spans, temperature):
    check_shape(turn(SHAPES.index(shape), spans, temperature > 0), shape, spans, temperature)


@TEMPERATURES
@SPANS
@pytest.mark.parametrize("kind", KINDS)
def test_masks(kind, spans, temperature):
    check_masks(turn(KINDS.index(kind), spans, temperature > 0), kind, spans, temperature)


@pytest.mark.slow
@TEMPERATURES
@SPANS
@ALL_DTYPES
def test_shapes_and_masks_in_all_dtypes(dtype, spans, temperature):
    for shape in SHAPES:
        check_shape(dtype, shape, spans, temperature)
    for kind in KINDS:
        check_masks(dtype, kind, spans, temperature)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 90), st.integers(1, 70), st.integers(1, 12), st.sampled_from(KINDS),
    st.none() | st.integers(1, 80), st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from(DTYPES),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(batch, frames, tokens, eighths, kind, units, temperature, dtype, seed):
    inputs = make_inputs(batch, frames, tokens, 8 * eighths, kind=kind, units=units, dtype=dtype, seed=seed)
    check(inputs, temperature)


@SPANS
@ALL_DTYPES
def test_gradients_do_not_pass_through_a_transposed_product(dtype, spans):
    """Triton 3.4.0 to 3.6 feeds the transpose of a product wrongly to another product on Hopper: both gradients,
    at a size where each has several steps. The same at real sizes: test_gpu.py."""
    check(make_inputs(1, 140, 64, 128, kind="full", units=70 if spans else None, dtype=dtype, seed=7), 0.1)


@TEMPERATURES
@SPANS
@pytest.mark.parametrize("which", [0, 1], ids=["speech", "text"])
def test_one_gradient_alone(which, spans, temperature):
    inputs = make_inputs(2, 50, 9, 24, units=20 if spans else None)
    both = run(inputs, temperature, random_grad(inputs))
    alone = run(inputs, temperature, random_grad(inputs), (which == 0, which == 1))
    assert torch.equal(alone[3 + which], both[3 + which])
    assert alone[4 - which].numel() == 0


@TEMPERATURES
@SPANS
def test_layouts(spans, temperature):
    inputs = make_inputs(2, 24, 5, 24, units=9 if spans else None)
    grad = random_grad(inputs)
    expected = run(inputs, temperature, grad)
    for how in ("transposed", "channels_first", "sliced", "last_dimension"):
        moved = inputs._replace(speech=strided(inputs.speech, how), text=strided(inputs.text, how))
        for one, other in zip(expected, run(moved, temperature, grad.t().contiguous().t())):
            assert torch.equal(one, other), how


@TEMPERATURES
@SPANS
def test_expanded_inputs(spans, temperature):
    inputs = make_inputs(1, 40, 11, 24, kind="full", units=9 if spans else None)
    check(Inputs(*(None if x is None else x.expand(3, *x.shape[1:]) for x in inputs)), temperature)


@pytest.mark.parametrize("frames", [8, 200])
@SPANS
def test_ties_go_to_the_lower_index(spans, frames):
    """Within a tile and between tiles."""
    speech = torch.zeros(1, frames, 16)
    speech[0, 3:, 0] = 2.0
    text = torch.zeros(1, 2, 16)
    text[0, :, 0] = torch.tensor([4.0, -4.0])
    start = torch.arange(frames, dtype=torch.int32)[None] if spans else None
    end = start + 1 if spans else None
    prior, mask = torch.full((1, frames), 0.125), torch.ones(1, 2, dtype=torch.bool)
    for temperature in (0.0, 0.5):
        inputs = AlignmentInputs(speech, text, prior, mask, start, end, temperature)
        assert backend.alignment_forward(inputs).unit.tolist() == [[3, 0]]


@TEMPERATURES
def test_spans_with_the_same_bounds_tie_between_tiles(temperature):
    """However the frames around them are read."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        speech, prior = torch.randn(1, 60, 64, generator=generator), torch.rand(1, 60, generator=generator) + 0.1
        text = speech[:, 21:37].mean(1, keepdim=True)
        start = torch.full((1, 20), 20, dtype=torch.int32)
        end = start + 1
        end[0, [0, 18]] = 37
        start[0, [1, 19]] = torch.tensor([3, 7], dtype=torch.int32)  # the tiles begin at different frames
        inputs = AlignmentInputs(speech, text, prior, torch.ones(1, 1, dtype=torch.bool), start, end, temperature)
        assert backend.alignment_forward(inputs).unit.tolist() == [[0]]


def test_tokens_that_share_a_unit_are_summed():
    """Hard: every token has chosen frame 2."""
    inputs = make_inputs(1, 5, 40, 16, kind="full")
    inputs.speech[0] = -1.0
    inputs.speech[0, 2] = 1.0
    inputs.text[0] = inputs.text[0].abs()
    assert (backend.alignment_forward(inputs.at(0.0)).unit == 2).all()
    check(inputs, 0.0)


@TEMPERATURES
@SPANS
def test_zero_and_tiny_vectors(spans, temperature):
    """Below 1e-8 the norm is clamped and its derivative absent."""
    inputs = make_inputs(2, 30, 6, 24, kind="full", units=6 if spans else None)
    inputs.speech[0, ::3] = 0
    inputs.speech[1] *= 1e-10
    inputs.text[0, 1] = 0
    inputs.text[0, 2] *= 1e-11
    check(inputs, temperature)


@SPANS
def test_small_gradients_in_float16(spans):
    """Many frames, long vectors and the mean of a batch make gradients that float16 alone would lose."""
    inputs = make_inputs(1, 90, 6, 64, kind="full", units=30 if spans else None, dtype=torch.float16)
    inputs = inputs._replace(speech=inputs.speech * 30, text=inputs.text * 0.02)
    grad = random_grad(inputs) * 1e-3
    found = run(inputs, 0.1, grad)
    expected = truth(inputs, 0.1, grad, None)
    assert relative_error(found[4], expected[4]) <= 1e-2
    # What float16 itself cannot hold is no error of the kernel's.
    assert (found[3].double() - expected[3]).abs().max() <= 1e-2 * expected[3].abs().max() + 2**-24


@TEMPERATURES
@pytest.mark.parametrize("units", [None, 12])
@pytest.mark.parametrize("where", NANS)
def test_nan_is_seen(where, units, temperature):
    check_nan(where, units, temperature, lambda *inputs: backend.alignment_forward(AlignmentInputs(*inputs)))


@SPANS
def test_float32_keeps_its_digits_at_a_low_temperature(spans):
    """Three tf32 products; with one the errors are 1e-3."""
    check(make_inputs(1, 70, 20, 768, kind="full", units=40 if spans else None, seed=5), 0.02)


def test_float32_is_never_a_single_tf32_product():
    inputs = make_inputs(1, 64, 16, 768, kind="full", seed=5)
    found, expected = (x.alignment_forward(inputs.at(0.0)).similarity for x in (backend, reference))
    assert relative_error(found, expected.double()) <= 1e-6


@SPANS
def test_a_very_low_temperature(spans):
    inputs = make_inputs(2, 40, 6, 16, units=12 if spans else None)
    found = run(inputs, 1e-9, random_grad(inputs))
    assert all(value.isfinite().all() for value in found)
    assert relative_error(found[0], truth(inputs, 0.0, random_grad(inputs), found[1])[0]) <= 1e-5


@TEMPERATURES
def test_priors_of_any_scale(temperature):
    for scale in (1e-30, 1e30):
        for units in (None, 12):
            inputs = make_inputs(1, 40, 7, 16, kind="holes", units=units)
            check(inputs._replace(frame_prior=inputs.frame_prior * scale), temperature)


@TEMPERATURES
def test_spans_beyond_the_frames_are_clipped(temperature):
    inputs = make_inputs(2, 20, 5, 16, kind="full", units=4)
    wild = torch.tensor([[-5, 3, 18, 9], [0, 25, 7, -3]], dtype=torch.int32)
    ends = torch.tensor([[4, 3, 30, 5], [20, 30, 9, -1]], dtype=torch.int32)
    grad = random_grad(inputs)
    found = run(inputs._replace(start=wild, end=ends), temperature, grad)
    tame = inputs._replace(start=wild.clamp(0, 20), end=ends.clamp(0, 20))
    for value, correct in zip(found, truth(tame, temperature, grad, found[1])):
        assert relative_error(value, correct) <= 1e-5


@pytest.mark.parametrize("batch, frames, tokens, units", [(0, 5, 3, None), (2, 0, 3, None), (2, 5, 0, None),
                                                         (2, 5, 3, 0), (0, 0, 0, 0)])  # fmt: skip
@TEMPERATURES
def test_empty_dimensions(batch, frames, tokens, units, temperature):
    inputs = Inputs(
        torch.randn(batch, frames, 8), torch.randn(batch, tokens, 8), torch.rand(batch, frames),
        torch.ones(batch, tokens, dtype=torch.bool),
        *(None if units is None else torch.zeros(batch, units, dtype=torch.int32) for _ in range(2)),
    )  # fmt: skip
    found = run(inputs, temperature, torch.ones(batch, tokens))
    assert found[3].shape == inputs.speech.shape and found[4].shape == inputs.text.shape
    assert all((x == 0).all() for x in (found[0], *found[2:])) and (found[1] == -1).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("level", LEVELS)
def test_what_a_loss_keeps_serves_others(level, reduction):
    """Batches of upstream gradients, which another way of the backward takes; hooks that move what was kept."""
    inputs = make_inputs(3, 20, 4, 16)
    sides = inputs.frame_prior > 0, inputs.token_mask, inputs.frame_prior

    def gradients(name, hooks=None, batched=False):
        speech, text = (x.clone().requires_grad_() for x in inputs[:2])
        with torch.autograd.graph.saved_tensors_hooks(*hooks or [lambda x: x] * 2):
            loss = pad_loss(speech, text, *sides, level=level, reduction=reduction, backend=name)
        upstream = torch.randn(5, *loss.shape, generator=torch.Generator().manual_seed(0))
        upstream = upstream if batched else upstream[0]
        return torch.autograd.grad(loss, (speech, text), upstream, is_grads_batched=batched)

    expected = gradients("reference")
    for hooks in (None, (torch.clone, lambda x: x), (lambda x: x, misaligned)):
        for one, other in zip(gradients("triton", hooks), expected):
            assert relative_error(one, other) <= 1e-5
    for one, other in zip(gradients("triton", batched=True), gradients("reference", batched=True)):
        assert relative_error(one, other) <= 1e-5


def test_repeated_runs_give_the_same_bits():
    inputs = make_inputs(2, 150, 20, 48, units=40, dtype=torch.bfloat16)
    runs = [run(inputs, 0.1, random_grad(inputs)) for _ in range(3)]
    assert all(torch.equal(one, other) for again in runs[1:] for one, other in zip(runs[0], again))


@pytest.mark.parametrize("level", LEVELS)
def test_programs_may_end_in_any_order(level, monkeypatch):
    """Whichever is the last merges the others' results, and gets the same bits."""
    arguments = loss_arguments("ragged", torch.bfloat16, True, width=520)

    def found():
        return [loss_and_gradients(level, temperature, "mean", arguments, "triton") for temperature in (0.0, 0.1)]

    expected = found()
    set_index = InterpreterBuilder.set_grid_idx
    for step in (-1, 7919):  # a prime that divides no number of programs: each runs once

        def in_another_order(self, x, y, z, step=step):
            set_index(self, (step * x + 3) % self.grid_dim[0], y, z)

        monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", in_another_order)
        for one, other in zip(found(), expected):
            assert all(torch.equal(x, y) for x, y in zip(one, other))


@TEMPERATURES
@pytest.mark.parametrize("level", ["token", "span"])
@pytest.mark.parametrize("common", [0.0, 10.0])
def test_gradients_of_what_is_nearly_parallel(level, temperature, common):
    """Little is left of what is summed, of embeddings that are aligned or have a large mean in common."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 6, 64, generator=generator) + common * torch.randn(64, generator=generator)
    speech = text.repeat_interleave(5, 1)
    speech = speech + (0.5 if common else 0.03) * torch.randn(speech.shape, generator=generator)
    sides = None, None, torch.rand(2, 30, generator=generator) + 0.1, None
    arguments = speech.to(torch.bfloat16), text.to(torch.bfloat16), *sides
    wide = [x if x is None else x.double() for x in arguments]
    found = loss_and_gradients(level, temperature, "mean", arguments, "triton")
    expected = loss_and_gradients(level, temperature, "mean", wide, "reference")
    for value, correct in zip(found[1:], expected[1:]):
        assert relative_error(value, correct) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-36, 1e35])
@pytest.mark.parametrize("level", LEVELS)
def test_losses_with_priors_of_any_scale(level, scale, dtype):
    """Neither sums of priors and frames nor gradients over such sums leave the range."""
    arguments = loss_arguments("ragged", dtype, True)
    speech_prior = arguments[4] * scale
    arguments = *arguments[:4], speech_prior, arguments[5]
    wide = [x.double() if x.is_floating_point() else x for x in arguments]
    found = loss_and_gradients(level, 0.1, "mean", arguments, "triton", upstream=65536.0)
    expected = loss_and_gradients(level, 0.1, "mean", wide, "reference", upstream=65536.0)
    for value, correct in zip(found, expected):
        assert relative_error(value, correct) <= BAR[dtype]


SIGNIFICANCE_SHAPES = [(1, 1, 1, 16), (2, 3, 49, 24), (1, 2, 150, 64), (1, 1, 140, 80), (1, 1, 70, 200)]


def check_significance(query, key, mask, scale, lse=None):
    found = significance(query, key, mask, scale, lse)
    expected = reference.significance(query.double(), key.double(), mask, scale, None)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert relative_error(found, expected) <= BAR[query.dtype]
    if mask is not None:
        assert (found[~mask] == 0).all()
        assert torch.allclose(found.sum(1), mask.any(1).float(), atol=1e-5)


@pytest.mark.parametrize("given_normalizer", [False, True])
@pytest.mark.parametrize("shape", SIGNIFICANCE_SHAPES, ids=str)
@ALL_DTYPES
def test_significance(dtype, shape, given_normalizer):
    query, key, mask = make(*shape, dtype=dtype)
    scale = shape[3] ** -0.5
    check_significance(query, key, mask, scale, row_normalizer(query, key, mask, scale) if given_normalizer else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_significance_masks(dtype, kind):
    check_significance(*make(2, 2, 130, 32, kind, dtype), 0.3)


def test_significance_without_a_mask_and_of_other_layouts():
    query, key, _ = make(2, 3, 50, 16, "full")
    expected = significance(query, key, None, 0.25, None)
    check_significance(query, key, None, 0.25)
    packed = torch.stack((query, key)).permute(1, 3, 0, 2, 4).contiguous()
    moved = [packed[:, :, i].transpose(1, 2) for i in (0, 1)]
    assert torch.equal(significance(*moved, None, 0.25, None), expected)
    apart = [torch.stack((x, x), -1).flatten(-2)[..., ::2] for x in (query, key)]
    assert torch.equal(significance(*apart, None, 0.25, None), expected)
    assert significance(query[:0], key[:0], None, 0.25, None).shape == (0, 50)
    assert significance(query[:, :, :0], key[:, :, :0], None, 0.25, None).shape == (2, 0)


def test_significance_of_large_scores():
    query, key, mask = make(1, 2, 60, 16, seed=3)
    found = significance(query * 30, key * 30, mask, 1.0, None)
    expected = reference.significance(query.double() * 30, key.double() * 30, mask, 1.0, None)
    assert relative_error(found, expected) <= 2e-3


BOTH = Needed(True, True)


def span_inputs(kind, frames, anchors, *, batch=3, most=9, seed=0, with_xi=False):
    generator = torch.Generator().manual_seed(seed)
    mask = make_mask(kind, batch, frames, generator)
    # Few distinct priors: ties, and zeros, which are never chosen.
    prior = torch.randint(0, 6, (batch, frames), generator=generator) / 7.0
    tokens = torch.randint(0, most + 1, (batch,), generator=generator)
    wanted = torch.randint(0, most + 4, (batch,), generator=generator)
    xi = torch.rand(batch, generator=generator, dtype=torch.float64) * 9 if with_xi else None
    return SpanInputs(prior * mask, mask, tokens, wanted, most, [0.3, 1.0, 2.5], xi, anchors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchors", ANCHORS)
def test_spans_are_those_of_the_reference(anchors, kind):
    for frames, seed, with_xi in ((1, 0, False), (37, 1, True), (130, 2, False)):
        inputs = span_inputs(kind, frames, anchors, seed=seed, with_xi=with_xi)
        for found, expected in zip(backend.select_spans(inputs), reference.select_spans(inputs)):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("frames", [1025, 2048, 4500])
@pytest.mark.parametrize("anchors", ANCHORS)
def test_spans_over_more_frames_than_a_block(anchors, frames):
    inputs = span_inputs("holes", frames, anchors, batch=2, most=frames, seed=5)
    prior = torch.rand(2, frames)
    prior[1] = (prior[1] * 5).floor()  # ties in every block
    inputs = inputs._replace(
        frame_prior=prior * inputs.frame_mask, num_anchors=torch.tensor([30, frames // 2 if anchors != "peaks" else 9])
    )
    for found, expected in zip(backend.select_spans(inputs), reference.select_spans(inputs)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anchors_of_priors_of_any_size(dtype):
    """From the smallest number to infinity, with neighbours that differ in their last bit."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 0x7F800001, (6, 90), generator=generator, dtype=torch.int32)
    bits[1] = torch.arange(90, dtype=torch.int32)  # numbers next to 0
    bits[2] = 0x7F800000 - torch.arange(90, dtype=torch.int32)  # and next to infinity
    bits[3] = 0x3FFFFFC0 + torch.arange(90, dtype=torch.int32)  # around 2, where the highest bit begins
    bits[4] = bits[4, :1]
    bits[5] = 0x7F800000
    prior = bits.view(torch.float32)[:, torch.randperm(90, generator=generator)].to(dtype)
    counts = torch.tensor([20, 45, 31, 63, 7, 8])
    mask = torch.ones(6, 90, dtype=torch.bool)
    for anchors in ("topk", "peaks"):
        inputs = SpanInputs(prior, mask, counts, counts, 63, [1.0, 2.0], None, anchors)
        for found, expected in zip(backend.select_spans(inputs), reference.select_spans(inputs)):
            assert torch.equal(found, expected), anchors


def test_no_room_for_spans():
    for batch, frames, most in ((0, 5, 2), (2, 0, 2), (2, 5, 0)):
        inputs = SpanInputs(
            torch.ones(batch, frames), torch.ones(batch, frames, dtype=torch.bool),
            *(torch.ones(batch, dtype=torch.int64),) * 2, most, [1.0], None, "topk",
        )  # fmt: skip
        assert [bound.shape for bound in backend.select_spans(inputs)] == [(batch, most)] * 2


@pytest.mark.parametrize("kind", KINDS)
@ALL_DTYPES
def test_pooled_distance(dtype, kind):
    inputs = make_inputs(3, 90, 11, 72, kind=kind, dtype=dtype, seed=3)
    token_weights = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) * inputs.token_mask
    pooling = PoolingInputs(inputs.speech, inputs.text, inputs.frame_prior.clamp(min=0), token_weights)
    wide = PoolingInputs(*(x.double() for x in pooling))
    found, expected = backend.pooled_distance_forward(pooling), reference.pooled_distance_forward(wide)
    for value, correct in zip(found, expected):
        assert value.isfinite().all() and relative_error(value, correct) <= 1e-5
    grad = torch.randn(3, generator=torch.Generator().manual_seed(2))
    gradients = backend.pooled_distance_backward(grad, pooling, found, BOTH)
    correct = reference.pooled_distance_backward(grad.double(), wide, expected, BOTH)
    for value, other, weights in zip(gradients, correct, pooling[2:]):
        assert value.dtype == dtype and relative_error(value, other) <= BAR[dtype]
        assert (value[weights == 0] == 0).all()
    alone = backend.pooled_distance_backward(grad, pooling, found, Needed(False, True))
    assert alone[0].numel() == 0 and torch.equal(alone[1], gradients[1])


def test_a_nan_reaches_the_pooled_distance():
    weights = torch.ones(1, 4)
    speech = torch.randn(1, 4, 16)
    speech[0, 2, 3] = torch.nan
    pooling = PoolingInputs(speech, torch.randn(1, 4, 16), weights, weights)
    assert backend.pooled_distance_forward(pooling).distance.isnan().all()


LOSSES = [("token", 0.0), ("token", 0.1), ("span", 0.0), ("span", 0.1), ("global", 0.0)]


def loss_and_gradients(level, temperature, reduction, arguments, name, upstream=1.0, **options):
    speech, text = (x.detach().requires_grad_() for x in arguments[:2])
    loss = pad_loss(speech, text, *arguments[2:], level=level, temperature=temperature, reduction=reduction,
                    backend=name, **options)  # fmt: skip
    grad = upstream * torch.arange(1.0, 1 + loss.numel()).view_as(loss)
    return loss.detach(), *torch.autograd.grad(loss, (speech, text), grad)


def loss_arguments(kind, dtype, priors, seed=0, width=24):
    inputs = make_inputs(3, 45, 9, width, kind=kind, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    speech_prior, text_prior = (torch.rand(3, length, generator=generator) for length in (45, 9))
    if kind == "zero_priors":
        speech_prior[:, ::3] = 0
    masks = inputs.frame_prior > 0, inputs.token_mask
    return inputs.speech, inputs.text, *masks, *((speech_prior, text_prior) if priors else (None, None))


def check_loss(place, level, temperature, kind, reduction):
    arguments = loss_arguments(kind, turn(place), priors=place % 2 == 0)
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in arguments]
    found = loss_and_gradients(level, temperature, reduction, arguments, "triton")
    expected = loss_and_gradients(level, temperature, reduction, wide, "reference")
    for value, correct in zip(found, expected):
        assert value.isfinite().all() and value.shape == correct.shape
        assert relative_error(value, correct) <= BAR[arguments[0].dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level, temperature", LOSSES)
def test_losses(level, temperature, kind):
    """Weights, spans, alignment and reduction in kernels, against the reference in float64."""
    place = KINDS.index(kind) + LOSSES.index((level, temperature))
    check_loss(place, level, temperature, kind, REDUCTIONS[place // 2 % len(REDUCTIONS)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level, temperature", LOSSES)
def test_losses_of_every_reduction_and_dtype(level, temperature, kind):
    for place in range(6):
        for reduction in REDUCTIONS:
            check_loss(place, level, temperature, kind, reduction)


@pytest.mark.parametrize("options", [
    {"anchors": "peaks"}, {"anchors": "stride", "num_anchors": 5}, {"num_anchors": 12, "scales": (1.0,)},
    {"num_anchors": torch.tensor([2, 0, 7])}, {"num_anchors": 0},
], ids=str)  # fmt: skip
def test_losses_with_other_spans(options):
    arguments = loss_arguments("ragged", torch.float32, True, seed=2)
    wide = [x.double() if x.is_floating_point() else x for x in arguments]
    found = loss_and_gradients("span", 0.1, "mean", arguments, "triton", **options)
    for value, correct in zip(found, loss_and_gradients("span", 0.1, "mean", wide, "reference", **options)):
        assert relative_error(value, correct) <= 1e-5


@pytest.mark.parametrize("level, temperature", LOSSES)
def test_one_gradient_of_a_loss_alone(level, temperature):
    arguments = loss_arguments("ragged", torch.float32, True)
    both = loss_and_gradients(level, temperature, "mean", arguments, "triton")
    for side in (0, 1):
        leaves = [x.detach().requires_grad_(i == side) for i, x in enumerate(arguments[:2])]
        loss = pad_loss(*leaves, *arguments[2:], level=level, temperature=temperature, backend="triton")
        loss.backward()
        assert torch.equal(leaves[side].grad, both[1 + side]) and leaves[1 - side].grad is None
    with torch.no_grad():
        loss = pad_loss(*arguments, level=level, temperature=temperature, backend="triton")
    assert torch.equal(loss, both[0])


@pytest.mark.parametrize("level", ["token", "span", "global"])
def test_a_loss_is_differentiated_once(level):
    arguments = loss_arguments("ragged", torch.float32, True)
    speech = arguments[0].nan_to_num(0).requires_grad_()
    loss = pad_loss(speech, *arguments[1:], level=level, backend="triton")
    (grad,) = torch.autograd.grad(loss, speech, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()
