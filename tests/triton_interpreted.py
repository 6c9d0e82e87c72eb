"""The Triton kernels of the alignment under the interpreter against the float64 reference; test_triton.py runs this."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import KINDS, Inputs, make_inputs, relative_error
from test_alignment import BAR, NANS, check_nan, check_units, random_grad, strided, truth
from triton_interpreter import ALL_DTYPES, DTYPES, SPANS, TEMPERATURES, turn

from pad_kernels.backends.reference import BACKEND as reference
from pad_kernels.backends.triton import BACKEND as backend
from pad_kernels.inputs import AlignmentInputs, Needed

pytest_plugins = ("triton_interpreter",)


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
    assert (found[3][inputs.frame_weights <= 0] == 0).all()
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
    frame_weights, mask = torch.full((1, frames), 0.125), torch.ones(1, 2, dtype=torch.bool)
    for temperature in (0.0, 0.5):
        inputs = AlignmentInputs(speech, text, frame_weights, mask, start, end, temperature)
        assert backend.alignment_forward(inputs).unit.tolist() == [[3, 0]]


@TEMPERATURES
def test_spans_with_the_same_bounds_tie_between_tiles(temperature):
    """However the frames around them are read."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        speech = torch.randn(1, 60, 64, generator=generator)
        frame_weights = torch.rand(1, 60, generator=generator) + 0.1
        text = speech[:, 21:37].mean(1, keepdim=True)
        start = torch.full((1, 20), 20, dtype=torch.int32)
        end = start + 1
        end[0, [0, 18]] = 37
        start[0, [1, 19]] = torch.tensor([3, 7], dtype=torch.int32)  # the tiles begin at different frames
        token_mask = torch.ones(1, 1, dtype=torch.bool)
        inputs = AlignmentInputs(speech, text, frame_weights, token_mask, start, end, temperature)
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
            check(inputs._replace(frame_weights=inputs.frame_weights * scale), temperature)


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


def test_repeated_runs_give_the_same_bits():
    inputs = make_inputs(2, 150, 20, 48, units=40, dtype=torch.bfloat16)
    runs = [run(inputs, 0.1, random_grad(inputs)) for _ in range(2)]
    assert all(torch.equal(one, other) for again in runs[1:] for one, other in zip(runs[0], again))
