"""The alignment ops of every backend against the float64 reference: values and gradients."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import KINDS, Inputs, make_inputs, relative_error

from pad_kernels import align, alignment_matrix
from pad_kernels.backends import native as native_backend
from pad_kernels.backends import reference
from pad_kernels.inputs import Needed, Saved

BAR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def run(inputs: Inputs, temperature: float, backend: str, grad: torch.Tensor):
    """similarity, unit, log_normalizer, grad_speech, grad_text."""
    speech, text = (x.detach().requires_grad_() for x in inputs[:2])
    outputs = torch.ops.pad_kernels.alignment_forward(speech, text, *inputs[2:], temperature, backend)
    return *outputs, *torch.autograd.grad(outputs[0], (speech, text), grad.to(outputs[0].dtype))


def truth(inputs: Inputs, temperature: float, grad: torch.Tensor, unit: torch.Tensor):
    """The same in float64; for the hard alignment the gradient is that of the units given."""
    wide = inputs.double().at(temperature)
    similarity, best, log_normalizer = reference.BACKEND.alignment_forward(wide)
    saved = Saved(similarity, best if temperature else unit, log_normalizer)
    gradients = reference.BACKEND.alignment_backward(grad.double(), wide, saved, Needed(True, True))
    return similarity, best, log_normalizer, *gradients


def random_grad(inputs: Inputs) -> torch.Tensor:
    grad = torch.randn(inputs.token_mask.shape, generator=torch.Generator().manual_seed(9))
    return grad.to(inputs.token_mask.device)


def check_units(inputs, temperature, unit, expected, tolerance):
    """The same units, or ones as good as makes no difference in this precision."""
    assert ((unit >= 0) == (expected >= 0)).all()
    if (unit == expected).all():
        return
    wide = inputs.double()
    units, unit_prior, _ = reference._units(wide.at(temperature))
    text = wide.text.nan_to_num(0)
    score = (text / reference._norm(text)) @ (units / reference._norm(units)).mT
    score = score / temperature + unit_prior.log()[:, None] if temperature else score
    gap = score.gather(2, expected.clamp(min=0)[..., None]) - score.gather(2, unit.clamp(min=0)[..., None])
    assert gap.nan_to_num(0).max() <= tolerance


def check(inputs: Inputs, temperature: float, backend: str):
    dtype = inputs.speech.dtype
    bar, grad = BAR[dtype], random_grad(inputs)
    found = run(inputs, temperature, backend, grad)
    expected = truth(inputs, temperature, grad, found[1])
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in found] == [accumulator, torch.int64, accumulator, dtype, dtype]
    check_units(inputs, temperature, found[1], expected[1], 2e-6 / (temperature or 1))
    names = ("similarity", "unit", "log_normalizer", "grad_speech", "grad_text")
    for name, value, correct in zip(names, found, expected):
        if name != "unit":
            assert value.isfinite().all(), name
            assert relative_error(value, correct) <= bar, name
    taking_part = found[1] >= 0
    assert (found[0][~taking_part] == 0).all() and (found[2][~taking_part] == 0).all()
    assert (found[3][inputs.frame_weights <= 0] == 0).all()
    assert (found[4][~inputs.token_mask] == 0).all()


SHAPES = [
    (1, 1, 1, 2),
    (2, 1, 5, 7),
    (3, 37, 1, 33),
    (2, 130, 49, 64),
    (3, 65, 100, 48),
    (2, 200, 16, 100),
    (2, 90, 17, 768),
    (1, 260, 48, 512),
]


@pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", BAR, ids=lambda dtype: str(dtype)[6:])
def test_shapes_and_dtypes(backend, dtype, shape, spans, temperature):
    check(make_inputs(*shape, units=3 * shape[2] if spans else None, dtype=dtype), temperature, backend)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_masks(backend, kind, units, temperature):
    """Ragged, left-padded, with holes, empty; whatever takes no part is NaN."""
    check(make_inputs(4, 70, 19, 40, kind=kind, units=units, seed=4), temperature, backend)


@settings(max_examples=200, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.integers(1, 4), st.integers(1, 90), st.integers(1, 60), st.integers(8, 70), st.sampled_from(KINDS),
    st.none() | st.integers(1, 80), st.sampled_from([0.0, 0.1, 0.7]),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(backend, batch, frames, tokens, width, kind, units, temperature, dtype, seed):
    inputs = make_inputs(batch, frames, tokens, width, kind=kind, units=units, dtype=dtype, seed=seed)
    check(inputs, temperature, backend)


def nested(frames, units, seed, inputs):
    """Spans around random anchors that mostly lie within the one after: some equal, some with one edge in common."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randint(0, frames, (inputs.speech.shape[0], units), generator=generator)
    if seed % 2:
        anchor = anchor.sort(1).values
    reach = torch.randint(0, 9, (2, *anchor.shape, 3), generator=generator)
    reach = reach if seed % 3 == 0 else reach.cumsum(3)  # else only some lie within one another
    start = (anchor[..., None] - reach[0]).clamp(0, frames).flatten(1).int()
    end = (anchor[..., None] + reach[1]).clamp(0, frames).flatten(1).int()
    return inputs._replace(start=start, end=end)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["full", "holes", "zero_priors", "some_empty"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [2, 17])
@pytest.mark.parametrize("seed", range(4))
def test_spans_within_spans(backend, seed, batch, dtype, kind, temperature):
    """More units than are worked on at a time; a large batch in whole utterances, a small one in parts."""
    inputs = make_inputs(batch, 230, 11, 19, kind=kind, units=1, dtype=dtype, seed=seed)
    check(nested(230, 40, seed, inputs), temperature, backend)


@pytest.mark.parametrize("temperature", [0.02, 0.05])
@pytest.mark.parametrize("spans", [False, True])
def test_embeddings_that_are_much_alike(native, spans, temperature):
    """Cosines above 0.9 that differ little, at a low temperature: an error in them is divided by it.

    Less rounding than in plain float32: a product of one long sum per element gives 4 to 8 times eps / temperature
    for speech, 0.6 times for text.
    """
    inputs = make_inputs(2, 300, 30, 768, kind="full", units=1)
    common = 5 * torch.randn(768, generator=torch.Generator().manual_seed(3))
    inputs = inputs._replace(speech=inputs.speech + common, text=inputs.text + common)
    inputs = nested(300, 30, 1, inputs) if spans else inputs._replace(start=None, end=None)
    grad = random_grad(inputs)
    found = run(inputs, temperature, native, grad)
    rounding = torch.finfo(torch.float32).eps / temperature
    for own, correct, bar in zip(found[3:], truth(inputs, temperature, grad, found[1])[3:], (3, 0.6)):
        assert relative_error(own, correct) <= bar * rounding


NANS = ("one frame", "all frames", "one token", "all tokens")


def check_nan(where: str, units: int | None, temperature: float, forward):
    """A NaN at a real position reaches every token that looks at it, and no other utterance."""
    inputs = make_inputs(2, 70, 6, 16, kind="full")
    if units is not None:
        start = torch.arange(units, dtype=torch.int32).expand(2, -1) * 5
        inputs = inputs._replace(start=start, end=start + 7)
    side = inputs.speech if "frame" in where else inputs.text
    side[0, 3 if "one" in where else slice(None)] = torch.nan
    similarity, unit, _ = forward(*inputs, temperature)
    assert similarity[0].isnan().all() if where != "one token" else similarity[0, 3].isnan()
    assert similarity.isnan().sum() == (1 if where == "one token" else 6)
    assert (unit >= 0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 12])
@pytest.mark.parametrize("where", NANS)
def test_nan_is_seen(backend, where, units, temperature):
    op = torch.ops.pad_kernels.alignment_forward
    check_nan(where, units, temperature, lambda *arguments: op(*arguments, backend))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("width", [16, 65, 200])
def test_equal_frames_tie(backend, width, temperature):
    """Of frames that are the same to the bit the first is taken, whatever the number of tokens."""
    generator = torch.Generator().manual_seed(2)
    for tokens in (1, 2, 5):
        frame, text = (torch.randn(1, n, width, generator=generator) for n in (1, tokens))
        speech = frame.expand(1, 22, width).contiguous()
        assert (align(speech, text, temperature=temperature, backend=backend).unit == 0).all()
        if temperature == 0:
            assert (alignment_matrix(speech, text, temperature=0, backend=backend)[..., 0] == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_half_precision_is_no_worse_than_eager(backend, temperature, dtype):
    """|kernel - truth| <= |plain PyTorch in that dtype - truth| + the rounding of the result."""
    inputs = make_inputs(2, 120, 30, 96, kind="full", dtype=dtype)
    grad = random_grad(inputs)
    found = run(inputs, temperature, backend, grad)
    expected = truth(inputs, temperature, grad, found[1])
    speech, text = (x.detach().requires_grad_() for x in inputs[:2])
    normalize = torch.nn.functional.normalize
    cosine = normalize(text, dim=-1) @ normalize(speech, dim=-1).mT
    if temperature:
        logits = cosine / temperature + inputs.frame_weights.log()[:, None].to(dtype)
        similarity = (logits.softmax(-1) * cosine).sum(-1)
    else:
        similarity = cosine.max(-1).values
    eager = (similarity, *torch.autograd.grad(similarity, (speech, text), grad.to(dtype)))
    for value, correct, rough in zip((found[0], *found[3:]), (expected[0], *expected[3:]), eager):
        rounding = torch.finfo(value.dtype).eps * correct.norm()
        assert (value.double() - correct).norm() <= (rough.double() - correct).norm() + rounding


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 12])
def test_width_one(backend, units, temperature):
    """A cosine of numbers is a sign: its gradient is 0, and best units are tied."""
    inputs = make_inputs(2, 9, 4, 1, units=units, seed=1)
    found = run(inputs, temperature, backend, random_grad(inputs))
    expected = truth(inputs, temperature, random_grad(inputs), found[1])
    assert relative_error(found[0], expected[0]) <= 1e-5
    for grad, values in zip(found[3:], inputs):
        assert (grad.abs() * values.nan_to_num(0).abs()).max() <= 1e-5


@pytest.mark.parametrize("units", [None, 8])
def test_ties_go_to_the_lower_index(backend, units):
    speech = torch.zeros(1, 8, 16)
    speech[0, 3:, 0] = 2.0
    text = torch.zeros(1, 2, 16)
    text[0, :, 0] = torch.tensor([4.0, -4.0])
    start = end = None
    if units:
        start = torch.arange(8, dtype=torch.int32)[None]
        end = start + 1
    frame_weights, mask = torch.full((1, 8), 0.125), torch.ones(1, 2, dtype=torch.bool)
    for temperature in (0.0, 0.5):
        _, unit, _ = torch.ops.pad_kernels.alignment_forward(
            speech, text, frame_weights, mask, start, end, temperature, backend
        )
        assert unit.tolist() == [[3, 0]]


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 6])
def test_zero_and_tiny_vectors(backend, units, temperature):
    """Below 1e-8 the norm is clamped and its derivative absent."""
    inputs = make_inputs(2, 30, 6, 20, kind="full", units=units)
    inputs.speech[0, ::3] = 0
    inputs.speech[1] *= 1e-10
    inputs.text[0, 1] = 0
    inputs.text[0, 2] *= 1e-11
    grad = random_grad(inputs)
    found = run(inputs, temperature, backend, grad)
    for value, correct in zip(found, truth(inputs, temperature, grad, found[1])):
        if value.is_floating_point():
            assert relative_error(value, correct) <= 1e-5


def strided(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """The same values in another layout."""
    if how == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if how == "channels_first":
        return tensor.mT.contiguous().mT
    if how == "sliced":
        shape = (tensor.shape[0] + 1, tensor.shape[1] * 2, tensor.shape[2] + 3)
        view = torch.full(shape, torch.nan, dtype=tensor.dtype)[1:, ::2, 2:-1]
    else:
        shape = (*tensor.shape[:2], tensor.shape[2] * 2)
        view = torch.full(shape, torch.nan, dtype=tensor.dtype)[..., ::2]
    return view.copy_(tensor)


@pytest.mark.parametrize("how", ["transposed", "channels_first", "sliced", "last_dimension"])
@pytest.mark.parametrize("units", [None, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(backend, how, units, dtype):
    inputs = make_inputs(3, 40, 11, 24, units=units, dtype=dtype)
    moved = inputs._replace(speech=strided(inputs.speech, how), text=strided(inputs.text, how))
    assert not moved.speech.is_contiguous()
    grad = random_grad(inputs)
    for temperature in (0.0, 0.1):
        plain, odd = (run(x, temperature, backend, grad) for x in (inputs, moved))
        for one, other in zip(plain, odd):
            assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_native_rows_that_start_anywhere(native, dtype, units, temperature):
    """Rows of whole 16 bytes that do not start at a multiple of 16 bytes, and rows that do after others that do not:
    the same values as from where memory is best read."""
    inputs = make_inputs(2, 70, 9, 40, units=units, dtype=dtype)
    grad = random_grad(inputs)
    expected = run(inputs, temperature, native, grad)
    for before, after in ((1, 7), (0, 3), (8, 8)):
        speech, text = (torch.nn.functional.pad(x, (before, after))[..., before:-after] for x in inputs[:2])
        moved = inputs._replace(speech=speech, text=text)
        for one, other in zip(run(moved, temperature, native, grad), expected):
            assert torch.equal(one, other)


@pytest.mark.parametrize("units", [None, 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_native_batch_of_many_blocks(native, dtype, units):
    """A batch and width that keep a GPU busy: there one pass over the units gives both gradients."""
    check(make_inputs(33, 40, 6, 1024 // dtype.itemsize, units=units, dtype=dtype), 0.1, native)


@pytest.mark.parametrize("needed", [Needed(True, False), Needed(False, True)], ids=["speech", "text"])
def test_native_one_gradient_over_many_tokens(native, needed):
    """More tokens than a tile, and more units: each gradient by itself is the one of both."""
    inputs = make_inputs(2, 150, 140, 72, dtype=torch.bfloat16).at(0.1)
    grad = torch.randn(2, 140)
    saved = native_backend.BACKEND.alignment_forward(inputs)
    both = native_backend.BACKEND.alignment_backward(grad, inputs, saved, Needed(True, True))
    one = native_backend.BACKEND.alignment_backward(grad, inputs, saved, needed)
    assert all(torch.equal(x, y) for x, y, asked in zip(one, both, needed) if asked)
    assert all(x.numel() == 0 for x, asked in zip(one, needed) if not asked)


def test_expanded_inputs(backend):
    inputs = make_inputs(1, 40, 11, 24, kind="full")
    moved = Inputs(*(None if x is None else x.expand(3, *x.shape[1:]) for x in inputs))
    check(moved, 0.1, backend)
    check(moved, 0.0, backend)
    check(moved._replace(frame_weights=torch.full((1, 1), 0.5).expand(3, 40)), 0.1, backend)


def test_gradient_of_an_expanded_loss(backend):
    """The gradient that arrives may have strides of 0."""
    inputs = make_inputs(2, 30, 8, 16)
    speech, text = (x.requires_grad_() for x in inputs[:2])
    similarity = torch.ops.pad_kernels.alignment_forward(*inputs, 0.1, backend)[0]
    similarity.sum().backward()
    expected = truth(inputs, 0.1, torch.ones_like(similarity), None)[3:]
    assert relative_error(speech.grad, expected[0]) <= 1e-5
    assert relative_error(text.grad, expected[1]) <= 1e-5


@pytest.mark.parametrize("which", ["speech", "text"])
def test_one_gradient_alone(backend, which):
    inputs = make_inputs(2, 50, 9, 24, units=20)
    both = run(inputs, 0.1, backend, random_grad(inputs))
    wanted = getattr(inputs, which).requires_grad_()
    similarity = torch.ops.pad_kernels.alignment_forward(*inputs, 0.1, backend)[0]
    (grad,) = torch.autograd.grad(similarity, wanted, random_grad(inputs))
    assert torch.equal(grad, both[3 if which == "speech" else 4])


@pytest.mark.parametrize("batch, frames, tokens, units", [(0, 5, 3, None), (2, 0, 3, None), (2, 5, 0, None),
                                                         (2, 5, 3, 0), (0, 0, 0, 0)])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_empty_dimensions(backend, batch, frames, tokens, units, temperature):
    speech = torch.randn(batch, frames, 4, requires_grad=True)
    text = torch.randn(batch, tokens, 4, requires_grad=True)
    spans = None if units is None else (torch.zeros(batch, units, dtype=torch.int32),) * 2
    found = align(speech, text, spans, temperature=temperature, backend=backend)
    assert found.similarity.shape == (batch, tokens)
    found.similarity.sum().backward()
    assert speech.grad.shape == speech.shape and text.grad.shape == text.shape
    if frames == 0 or units == 0:
        assert (found.unit == -1).all() and (text.grad == 0).all()


def test_spans_beyond_the_frames_are_clipped(backend):
    """Where values are not checked, as on a GPU, the ops clip."""
    inputs = make_inputs(2, 20, 5, 16, kind="full", units=4)
    wild = torch.tensor([[-5, 3, 18, 9], [0, 25, 7, -3]], dtype=torch.int32)
    ends = torch.tensor([[4, 3, 30, 5], [20, 30, 9, -1]], dtype=torch.int32)
    found = run(inputs._replace(start=wild, end=ends), 0.1, backend, random_grad(inputs))
    tame = inputs._replace(start=wild.clamp(0, 20), end=ends.clamp(0, 20))
    for value, correct in zip(found, truth(tame, 0.1, random_grad(inputs), None)):
        assert relative_error(value, correct) <= 1e-5


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_matrix_agrees_with_align(backend, temperature):
    inputs = make_inputs(3, 40, 7, 16, kind="holes", units=12, seed=2)
    masks = (inputs.frame_weights > 0, inputs.token_mask)
    arguments = (*inputs[:2], inputs[4:], *masks, inputs.frame_weights, temperature)
    found = align(*arguments, backend=backend)
    matrix = alignment_matrix(*arguments, backend=backend)
    taking_part = found.unit >= 0
    assert torch.allclose(matrix.sum(2), taking_part.float())
    if temperature == 0:
        assert torch.equal(matrix.argmax(2)[taking_part], found.unit[taking_part])


def test_scale_of_the_prior_shifts_the_normalizer_alone(backend):
    inputs = make_inputs(2, 40, 7, 16, kind="full")
    one = torch.ops.pad_kernels.alignment_forward(*inputs, 0.1, backend)
    scaled = inputs._replace(frame_weights=inputs.frame_weights * 1000)
    other = torch.ops.pad_kernels.alignment_forward(*scaled, 0.1, backend)
    assert torch.allclose(one[0], other[0], atol=1e-6) and torch.equal(one[1], other[1])
    assert torch.allclose(one[2] + torch.tensor(1000.0).log(), other[2], atol=1e-5)
