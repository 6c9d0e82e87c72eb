"""What surrounds the ops: weights of positions, the check of spans, the loss of a batch; compiled and in PyTorch."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import KINDS, make_mask, relative_error

from pad_kernels import checks
from pad_kernels.backends import FASTEST_FIRST
from pad_kernels.inputs import Pooled, Positions, Saved

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def compiled(native):
    return FASTEST_FIRST[native]


REFERENCE = FASTEST_FIRST["reference"]


def both(compiled, *arguments, **options):
    """The weights in PyTorch and compiled, or the errors of both."""

    def outcome(backend):
        try:
            return backend.position_weights(Positions("prior", *arguments), **options)
        except ValueError as error:
            return str(error)

    return outcome(REFERENCE), outcome(compiled)


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    batch=st.integers(0, 4), length=st.integers(0, 70), kind=st.sampled_from(KINDS), seed=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES), prior=st.sampled_from([None, *DTYPES]), masked=st.sampled_from([0.0, -1.0]),
    normalized=st.booleans(), strided=st.booleans(), zeros=st.booleans(),
)  # fmt: skip
def test_compiled_against_pytorch(
    compiled, batch, length, kind, seed, dtype, prior, masked, normalized, strided, zeros
):
    generator = torch.Generator().manual_seed(seed)
    real = make_mask(kind, batch, length, generator) if batch and length else torch.ones(batch, length).bool()
    given = None
    if prior is not None:
        given = torch.rand(length if strided else batch, batch if strided else length, generator=generator)
        given = (given.T if strided else given).to(prior)
        given = (given * (0 if zeros else 1)).masked_fill(~real, torch.nan)
    values = torch.empty(batch, length, 3, dtype=dtype)
    options = {"normalized": normalized, "masked": masked}
    expected, found = both(compiled, values, None if kind == "full" else real, given, **options)
    assert found.dtype == expected.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.shape == expected.shape == (batch, length)
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
    assert isinstance(found, str) and found == expected and found.startswith("prior: got ")
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
@pytest.mark.parametrize("empty", [(), (1,), (0, 1, 2)])
def test_the_loss_of_a_batch(compiled, empty, reduction, dtype):
    similarity, weights = torch.rand(3, 7, dtype=dtype), torch.rand(3, 7, dtype=dtype)
    unit = torch.randint(-1, 5, (3, 7)).index_fill(0, torch.tensor([0, 2]), 3)
    unit[1, :] = torch.tensor([-1, -1, 4, -1, -1, -1, -1])
    distance, totals = torch.rand(3, dtype=dtype), torch.rand(3, 2, dtype=dtype) + 0.1
    for b in empty:
        unit[b], totals[b, b % 2], distance[b] = -1, 0, torch.nan
    saved, pooled = Saved(similarity, unit, torch.zeros(3, 7, dtype=dtype)), Pooled(distance, distance[:, None], totals)
    for name, arguments in (("token_loss", (saved, weights)), ("pooled_loss", (pooled,))):
        expected, grad_scale = getattr(REFERENCE, name)(*arguments, reduction)
        found, own_grad_scale = getattr(compiled, name)(*arguments, reduction)
        assert found.dtype == dtype and found.shape == expected.shape and found.isfinite().all()
        assert relative_error(found, expected) <= (1e-15 if dtype == torch.float64 else 1e-6)
        assert float(own_grad_scale) == pytest.approx(float(grad_scale))


@pytest.mark.parametrize("name", ["token_loss", "pooled_loss"])
def test_a_nan_reaches_the_loss(compiled, name):
    similarity = torch.full((2, 3), torch.nan)
    arguments = (Saved(similarity, torch.zeros(2, 3, dtype=torch.int64), similarity), torch.ones(2, 3))
    if name == "pooled_loss":
        arguments = (Pooled(similarity[:, 0].clone(), similarity, torch.ones(2, 2)),)
    for backend in (compiled, REFERENCE):
        assert getattr(backend, name)(*arguments, "mean")[0].isnan()


def test_no_utterance(compiled):
    nothing = torch.zeros(0, 4)
    for backend in (compiled, REFERENCE):
        for reduction, shape in (("mean", ()), ("sum", ()), ("none", (0,))):
            loss, _ = backend.token_loss(Saved(nothing, nothing.long(), nothing), nothing, reduction)
            assert loss.shape == shape and not loss.any()
