"""What surrounds the ops in a loss, compiled and in PyTorch: weights, the check of spans, the reduction."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import KINDS, make_mask, relative_error

from pad_kernels import checks, pad_loss
from pad_kernels.backends import FASTEST_FIRST
from pad_kernels.inputs import LEVELS, LossOptions, LossRequest, Positions, SpanSelection

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def compiled(native):
    return FASTEST_FIRST[native]


REFERENCE = FASTEST_FIRST["reference"]


def both(compiled, values, mask, prior, *, of_text=False, level="token"):
    """The weights that a loss gives to the positions of a side, in PyTorch and compiled, or the errors of both."""
    names = ("text_prior", "speech_prior") if of_text else ("speech_prior", "text_prior")
    given, other = Positions(names[0], values, mask, prior), Positions(names[1], values[:, :1], None, None)
    spans = (torch.zeros(values.shape[0], 1, dtype=torch.int32),) * 2 if level == "span" else None
    sides = (other, given) if of_text else (given, other)

    def outcome(backend):
        options = LossOptions(level, 0.1, "mean", SpanSelection(None, (1.0,), "topk"))
        try:
            _, record = backend.loss_forward(LossRequest(*sides, spans, options))
        except ValueError as error:
            return str(error)
        frame_weights, token_weights, *_ = backend.unpack(record).tensors
        return token_weights if of_text else frame_weights

    return outcome(REFERENCE), outcome(compiled)


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    batch=st.integers(0, 4), length=st.integers(0, 70), kind=st.sampled_from(KINDS), seed=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES), prior=st.sampled_from([None, *DTYPES]), level=st.sampled_from(LEVELS),
    of_text=st.booleans(), strided=st.booleans(), zeros=st.booleans(),
)  # fmt: skip
def test_compiled_against_pytorch(compiled, batch, length, kind, seed, dtype, prior, level, of_text, strided, zeros):
    generator = torch.Generator().manual_seed(seed)
    real = make_mask(kind, batch, length, generator) if batch and length else torch.ones(batch, length).bool()
    given = None
    if prior is not None:
        given = torch.rand(length if strided else batch, batch if strided else length, generator=generator)
        given = (given.T if strided else given).to(prior)
        given = (given * (0 if zeros else 1)).masked_fill(~real, torch.nan)
    values, mask = torch.ones(batch, length, 3, dtype=dtype), None if kind == "full" else real
    expected, found = both(compiled, values, mask, given, of_text=of_text, level=level)
    masked = -1 if level == "span" and not of_text else 0
    assert found.dtype == expected.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.shape == expected.shape == (batch, length)
    if of_text and not zeros:
        assert torch.allclose(found.double().sum(1), real.any(1).double(), rtol=0, atol=1e-6)
    assert (found[~real] == masked).all() and torch.equal(found[~real], expected[~real])
    assert relative_error(found[real], expected[real]) <= (1e-15 if dtype == torch.float64 else 3e-7)


SINGLE, DOUBLE = torch.float32, torch.float64
BAD = [*((dtype, bad) for dtype in (SINGLE, DOUBLE) for bad in (-1.0, torch.nan, torch.inf, -torch.inf, 1e38)),
       (DOUBLE, 1e39), (DOUBLE, 1e-46)]  # fmt: skip


@pytest.mark.parametrize("dtype, bad", BAD, ids=str)
@pytest.mark.parametrize("place", [(0, 0), (1, 36), (2, 16)])
def test_bad_values(compiled, bad, dtype, place):
    values, given = torch.zeros(3, 37, 1), torch.rand(3, 37, dtype=dtype)
    if bad == 1e-46:  # too small a prior only where its row has no larger one
        given[place[0]] = 0
    given[place] = bad
    expected, found = both(compiled, values, None, given)
    assert isinstance(found, str) and found == expected and found.startswith("speech_prior: got ")
    real = torch.ones(3, 37, dtype=torch.bool)
    real[place] = False
    expected, found = both(compiled, values, real, given)
    assert torch.equal(found, expected) and found[place] == 0


def test_spans(compiled):
    start, end = torch.tensor([[0, 2, 5], [1, 0, 0]], dtype=torch.int32), torch.tensor([[2, 2, 6], [6, 3, 0]])
    end = end.to(torch.int32)
    for change in (None, (start, -1), (end, 7), (start, 7), (end, -2)):
        bounds = [x.clone() for x in (start, end)]
        if change is not None:
            bounds[0 if change[0] is start else 1][1, 1] = change[1]
        for backend in (REFERENCE, compiled):
            found = checks.spans(bounds, 2, start.device)
            fit = backend.spans_fit(*found, 6)
            if change is None:
                assert all(torch.equal(x, y) for x, y in zip(checks.spans_inside(*found, 6, fit), bounds))
                continue
            with pytest.raises(ValueError, match="spans: got a span that is not 0 <= start <= end <= 6"):
                checks.spans_inside(*found, 6, fit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("empty", [(), (1,), (0, 1, 2)])
def test_the_reduction_over_a_batch(compiled, level, empty, reduction, dtype):
    generator = torch.Generator().manual_seed(0)
    speech, text = (torch.randn(3, length, 8, generator=generator, dtype=dtype) for length in (9, 7))
    masks = [torch.ones(3, 9, dtype=torch.bool), torch.ones(3, 7, dtype=torch.bool)]
    for b in empty:
        masks[b % 2][b], (speech, text)[b % 2][b] = False, torch.nan

    def losses(reduction, backend=compiled.name):
        return pad_loss(speech, text, *masks, level=level, num_anchors=3, reduction=reduction, backend=backend)

    each = losses("none", "reference")
    assert each.isfinite().all() and (each != 0).tolist() == [b not in empty for b in range(3)]
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / max(1, 3 - len(empty))}[reduction]
    found = losses(reduction)
    assert found.dtype == dtype and found.shape == expected.shape
    assert relative_error(found, expected) <= (1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("side", [0, 1], ids=["speech", "text"])
def test_a_nan_reaches_the_loss(compiled, level, side):
    sides = [torch.rand(2, 4, 8), torch.rand(2, 3, 8)]
    sides[side][1, 2, 5] = torch.nan
    for backend in (compiled, REFERENCE):
        first, second = pad_loss(*sides, level=level, reduction="none", backend=backend.name)
        assert first.isfinite() and second.isnan()


@pytest.mark.parametrize("level", LEVELS)
def test_no_utterance(compiled, level):
    for backend in (compiled, REFERENCE):
        for reduction, shape in (("mean", ()), ("sum", ()), ("none", (0,))):
            sides = torch.zeros(0, 5, 8), torch.zeros(0, 4, 8)
            loss = pad_loss(*sides, level=level, reduction=reduction, backend=backend.name)
            assert loss.shape == shape and not loss.any()
