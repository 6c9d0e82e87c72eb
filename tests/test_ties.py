"""Of equal units the first is taken, however a matrix product rounds and wherever they lie."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import Inputs

from pad_kernels import Spans, align, alignment_matrix
from pad_kernels.backends import reference
from pad_kernels.backends.ties import _bits, first_equal
from pad_kernels.inputs import AlignmentInputs

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ("contiguous", "channels_first", "frames_first")
thorough = settings(max_examples=150, deadline=None, derandomize=True,
                    suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


def first_of(contents: list) -> list[int]:
    """For each content the index of the first that equals it."""
    seen = {}
    return [seen.setdefault(content, k) for k, content in enumerate(contents)]


@st.composite
def repeated(draw, most_spans=0):
    """Few distinct frames, and few distinct weights, at any places; spans of which many are the same."""
    batch, frames, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 80)), draw(st.integers(1, 40))
    width, dtype = draw(st.integers(1, 130)), draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    values = torch.randn(draw(st.integers(1, 4)), width, generator=generator)
    pick = torch.randint(len(values), (batch, frames), generator=generator)
    weights = torch.tensor(draw(st.sampled_from([[1.0], [0.3, 0.3, 0.7], [0.1, 0.0, 0.1], [0.2, -1.0, 0.9]])))
    frame_weights = weights[torch.randint(len(weights), (batch, frames), generator=generator)]
    speech = values[pick].masked_fill(frame_weights[..., None] <= 0, torch.nan).to(dtype)
    layout = draw(st.sampled_from(LAYOUTS))
    if layout == "channels_first":
        speech = speech.mT.contiguous().mT
    if layout == "frames_first":
        speech = speech.transpose(0, 1).contiguous().transpose(0, 1)
    text = torch.randn(batch, tokens, width, generator=generator).to(dtype)
    mask = torch.rand(batch, tokens, generator=generator) < 0.9
    start = end = None
    if most_spans:
        lowest = torch.randint(frames + 1, (batch, 8), generator=generator)
        lengths = torch.randint(9, (batch, 8), generator=generator)
        units = draw(st.integers(1, most_spans))
        which = torch.randint(draw(st.integers(1, 8)), (batch, units), generator=generator)
        start, lengths = (x.gather(1, which).int() for x in (lowest, lengths))
        end = (start + lengths).clamp(max=frames)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(speech, text, frame_weights.to(accumulator), mask, start, end)


def frame_contents(inputs: Inputs, b: int, hard: bool) -> list:
    """What has to be the same for two frames to tie."""
    weights = (inputs.frame_weights[b] > 0).tolist() if hard else inputs.frame_weights[b].tolist()
    frames = [tuple(frame) for frame in inputs.speech[b].double().nan_to_num(0).tolist()]
    return list(zip(frames, weights))


def assert_first(unit: torch.Tensor, contents: list):
    first = first_of(contents)
    for k in unit.tolist():
        assert k < 0 or k == first[k]


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@thorough
@given(repeated())
def test_equal_frames(backend, temperature, inputs):
    unit = torch.ops.pad_kernels.alignment_forward(*inputs, temperature, backend)[1]
    for b in range(len(unit)):
        assert_first(unit[b], frame_contents(inputs, b, temperature == 0))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@thorough
@given(repeated(most_spans=150))
def test_spans_with_the_same_bounds(backend, temperature, inputs):
    """In whatever order spans lie within one another."""
    unit = torch.ops.pad_kernels.alignment_forward(*inputs, temperature, backend)[1]
    for b in range(len(unit)):
        assert_first(unit[b], list(zip(inputs.start[b].tolist(), inputs.end[b].tolist())))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@thorough
@given(repeated(most_spans=150))
def test_spans_over_equal_frames(temperature, inputs):
    """The reference compares what spans cover. Single frames of any prior tie where it is hard."""
    unit = reference.BACKEND.alignment_forward(inputs.at(temperature)).unit
    for b in range(len(unit)):
        contents = frame_contents(inputs, b, hard=False)
        bounds = list(zip(inputs.start[b].tolist(), inputs.end[b].tolist()))
        assert_first(unit[b], [tuple(contents[low:high]) for low, high in bounds])
    single = torch.arange(inputs.speech.shape[1], dtype=torch.int32).expand(len(unit), -1)
    unit = reference.BACKEND.alignment_forward(AlignmentInputs(*inputs[:4], single, single + 1, temperature)).unit
    for b in range(len(unit)):
        assert_first(unit[b], frame_contents(inputs, b, temperature == 0))


@thorough
@given(st.data())
def test_matrix_agrees_with_align(backend, data):
    inputs = data.draw(repeated(most_spans=data.draw(st.sampled_from([0, 40]))))
    speech_mask, prior = inputs.frame_weights >= 0, inputs.frame_weights.clamp(min=0)
    spans = None if inputs.start is None else Spans(inputs.start, inputs.end)
    hard, soft = (
        (inputs.speech, inputs.text, spans, speech_mask, inputs.token_mask, prior, temperature)
        for temperature in (0, 0.1)
    )
    unit, matrix = align(*hard, backend=backend).unit, alignment_matrix(*hard, backend=backend)
    assert torch.equal(matrix.sum(2) > 0, unit >= 0) and torch.equal(matrix.argmax(2), unit.clamp(min=0))
    found, matrix = align(*soft, backend="reference"), alignment_matrix(*soft, backend="reference")
    # Exponents that differ may round to the same weight.
    best = matrix.gather(2, found.unit.clamp(min=0)[..., None])[..., 0]
    assert torch.equal(best, matrix.amax(2))
    for b in range(len(unit)) if spans is None else ():
        for k, first in enumerate(first_of(frame_contents(inputs, b, hard=False))):
            assert torch.equal(matrix[b, :, k], matrix[b, :, first])


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_product_that_rounds_by_place(monkeypatch, seed, spans, temperature):
    """As some do: every score is off by a few units in the last place, each in its own way."""
    generator = torch.Generator().manual_seed(seed)
    name = "_soft_logits" if temperature else "_hard_logits"
    plain = getattr(reference, name)

    def rounded(cosine, *rest):
        logits = plain(cosine, *rest)
        return logits * (1 + 3e-7 * torch.rand(logits.shape, generator=generator))

    monkeypatch.setattr(reference, name, rounded)
    frame, text = (torch.randn(2, n, 65, generator=generator) for n in (1, 6))
    speech = frame.expand(2, 40, 65).contiguous()
    bounds = None
    if spans:
        start = torch.arange(36).expand(2, 36)
        bounds = (start, start + 3)
    found = align(speech, text, bounds, temperature=temperature, backend="reference")
    assert (found.unit == 0).all()
    matrix = alignment_matrix(speech, text, bounds, temperature=temperature, backend="reference")
    assert (matrix.argmax(2) == 0).all()


def test_gradient_of_the_matrix_is_that_of_each_unit():
    text = torch.randn(1, 2, 5, dtype=torch.float64)
    speech = torch.randn(1, 1, 5, dtype=torch.float64).expand(1, 4, 5).contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda speech: alignment_matrix(speech, text, temperature=0.5), speech)


@given(st.lists(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=6, max_size=6), min_size=1))
def test_first_equal(rows):
    found = first_equal(torch.tensor(rows))
    assert found.tolist() == [first_of([tuple(row) for row in utterance]) for utterance in rows]


@pytest.mark.parametrize("values", [(-1.0, 1.0), (0.0, 1.0), (0.0, 0.5, 1.0, 2.0), (-0.0, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [7, 12, 33])
def test_first_equal_of_rows_of_few_values(width, dtype, values):
    """Bits that differ in sign and exponent alone."""
    pick = torch.randint(len(values), (2, 700, width), generator=torch.Generator().manual_seed(4))
    rows = torch.tensor(values, dtype=dtype)[pick]
    rows[:, 1::3] = rows[:, :1]
    found = first_equal(_bits(rows, torch.ones(2, 700, dtype=dtype)))
    assert found.tolist() == [first_of([tuple(row) for row in utterance]) for utterance in rows.tolist()]


def test_first_equal_of_one_fingerprint(monkeypatch):
    """Rows that differ are never taken for equal."""
    zeros = lambda count, device: torch.zeros(count, dtype=torch.int64)  # noqa: E731
    monkeypatch.setattr("pad_kernels.backends.ties._multipliers", zeros)
    rows = torch.arange(12).reshape(1, 4, 3)
    assert first_equal(rows).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_first_equal_of_nothing(shape):
    found = first_equal(torch.zeros(shape, dtype=torch.int64))
    assert found.shape == shape[:2] and (found == 0).all()
