"""significance of every backend against the float64 reference."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import KINDS, make_mask, relative_error

from pad_kernels import significance, significance_from_attentions

BAR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def make(batch, heads, length, width, kind="ragged", dtype=torch.float32, seed=0):
    """query, key with NaN at masked positions, mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, batch, heads, length, width)
    query, key = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    mask = make_mask(kind, batch, length, generator)
    return *(x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (query, key)), mask


def row_normalizer(query, key, mask, scale):
    """log-sum-exp of the scaled scores over the real keys, NaN in masked rows."""
    query, key = (x.nan_to_num(0).double() for x in (query, key))
    scores = (query @ key.mT * scale).masked_fill(~mask[:, None, None], -torch.inf)
    return scores.logsumexp(3).masked_fill(~mask[:, None], torch.nan).float()


def check(query, key, mask, backend, scale=None, lse=None):
    found = significance(query, key, mask, scale=scale, lse=lse, backend=backend)
    expected = significance(query.double(), key.double(), mask, scale=scale, backend="reference")
    assert found.dtype == (torch.float64 if query.dtype == torch.float64 else torch.float32)
    assert found.isfinite().all()
    assert relative_error(found, expected) <= BAR[query.dtype]
    assert (found[~mask] == 0).all()
    assert torch.allclose(found.sum(1), mask.any(1).to(found.dtype), atol=1e-5)


SHAPES = [(1, 1, 1, 1), (2, 3, 49, 7), (2, 2, 100, 33), (1, 4, 131, 64), (2, 1, 300, 80)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", BAR, ids=lambda dtype: str(dtype)[6:])
def test_shapes_and_dtypes(backend, shape, dtype):
    check(*make(*shape, dtype=dtype), backend)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_row_normalizer_given(backend, shape, dtype):
    query, key, mask = make(*shape, dtype=dtype)
    check(query, key, mask, backend, lse=row_normalizer(query, key, mask, shape[3] ** -0.5))


@settings(max_examples=100, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 150), st.integers(1, 70), st.sampled_from(KINDS),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(backend, batch, heads, length, width, kind, dtype, seed):
    check(*make(batch, heads, length, width, kind, dtype, seed), backend)


def test_large_scores(backend):
    """The softmax must not overflow."""
    query, key, mask = make(1, 2, 60, 16, seed=3)
    found = significance(query * 30, key * 30, mask, scale=1.0, backend=backend)
    expected = significance(query.double() * 30, key.double() * 30, mask, scale=1.0, backend="reference")
    # Scores of some thousands carry an error of their float32 rounding into the exponential.
    assert relative_error(found, expected) <= 2e-3


def test_equals_the_definition(backend):
    query, key, mask = make(2, 3, 80, 32)
    scores = query.nan_to_num(0) @ key.nan_to_num(0).mT / 32**0.5
    maps = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    expected = significance_from_attentions(maps, mask)
    assert relative_error(significance(query, key, mask, backend=backend), expected) <= 1e-5


def test_layouts(backend):
    """[B, T, H, d] transposed, as attention layers have it, a slice of a fused projection, a strided last
    dimension and expanded heads."""
    query, key, mask = make(2, 3, 50, 16)
    expected = significance(query, key, mask, backend=backend)
    packed = torch.stack((query, key)).permute(1, 3, 0, 2, 4).contiguous()
    moved = [packed[:, :, i].transpose(1, 2) for i in (0, 1)]
    assert not moved[0].is_contiguous()
    assert relative_error(significance(*moved, mask, backend=backend), expected) <= 1e-6
    strided = [torch.stack((x, x), -1).flatten(-2)[..., ::2] for x in (query, key)]
    assert relative_error(significance(*strided, mask, backend=backend), expected) <= 1e-6
    one = [x[:, :1] for x in (query, key)]
    expanded = significance(*(x.expand(-1, 3, -1, -1) for x in one), mask, backend=backend)
    assert relative_error(expanded, significance(*one, mask, backend=backend)) <= 1e-6


@pytest.mark.parametrize("batch, length", [(0, 5), (2, 0)])
def test_empty_dimensions(backend, batch, length):
    query = torch.randn(batch, 2, length, 4)
    assert significance(query, query, backend=backend).shape == (batch, length)


def test_no_gradient(backend):
    query = torch.randn(1, 2, 5, 4, requires_grad=True)
    assert not significance(query, query, backend=backend).requires_grad
    assert not significance_from_attentions((query @ query.mT).softmax(-1)).requires_grad


def test_definition_averages_layers_after_normalizing():
    one = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    other = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert torch.allclose(significance_from_attentions([one, other * 10]), torch.tensor([[0.75, 0.25]]))


def test_definition_leaves_masked_queries_out():
    maps = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert torch.allclose(significance_from_attentions(maps, mask), torch.tensor([[0.75, 0.25, 0.0]]))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e7, 1e12, 1e30])
def test_scores_of_any_size(backend, size):
    """Powers of two, whose float32 scores are exact: what is left is the attention of the row's highest scores."""
    query, key, mask, scale = exact_scores(size)
    found = significance(query, key, mask, scale=scale, backend=backend)
    expected = significance(query.double(), key.double(), mask, scale=scale, backend="reference")
    assert relative_error(found, expected) <= 1e-5


def exact_scores(size):
    """query, key, mask and scale."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(0, 3, (2, 1, 3, 40, 8), generator=generator)
    query, key = (2.0**exponents) * torch.randint(0, 2, exponents.shape, generator=generator)
    return query, key, torch.arange(40) < torch.tensor([[31]]), 2.0 ** int(math.log2(size))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e7, 1e12, 1e30])
def test_scores_of_any_size_with_their_log_sum_exp(backend, size):
    """Its rounding is an error of the row's attention, but nothing is made of it that is more than all attention."""
    query, key, mask, scale = exact_scores(size)
    lse = row_normalizer(query, key, mask, scale)
    for known in (lse, lse * (1 - 1e-6)):
        found = significance(query, key, mask, scale=scale, lse=known, backend=backend)
        expected = significance(query.double(), key.double(), mask, scale=scale, backend="reference")
        assert found.isfinite().all() and (found >= 0).all() and (found[~mask] == 0).all()
        assert abs(found.sum() - 1) <= 1e-5
        if size <= 1e4:
            assert relative_error(found, expected) <= 2e-6 * 300 * size


def test_many_positions_with_large_scores(backend):
    """More scores than are kept, so that they are computed twice."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randint(0, 3, (2, 1, 1, 3000, 4), generator=generator).float()
    for scale in (1.0, 2.0**24):
        found = significance(query, key, scale=scale, backend=backend)
        expected = significance(query.double(), key.double(), scale=scale, backend="reference")
        assert relative_error(found, expected) <= 1e-5


def test_a_log_sum_exp_that_is_no_number(backend):
    query, key, mask = make(2, 3, 50, 16)
    lse = row_normalizer(query, key, mask, 0.25)
    right = significance(query, key, mask, lse=lse, backend=backend)
    other = lse.masked_fill(~mask[:, None], torch.inf)
    assert torch.equal(significance(query, key, mask, lse=other, backend=backend), right)
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="lse: got .* in a real row, expected finite"):
            significance(query, key, mask, lse=lse.masked_fill(torch.arange(50) == 0, bad), backend=backend)


def test_a_log_sum_exp_over_more_keys(backend):
    """As of a text whose special tokens are attended to and do not count: their share is left out."""
    query, key, _ = make(2, 3, 50, 16, "full")
    mask = torch.arange(50).expand(2, 50) % 7 > 0
    every = torch.ones_like(mask)
    attention = (query.double() @ key.double().mT / 4).softmax(3)
    received = torch.where(mask[:, None, :, None] & mask[:, None, None], attention, 0).mean(1).sum(1)
    found = significance(query, key, mask, lse=row_normalizer(query, key, every, 0.25), backend=backend)
    assert relative_error(found, received / received.sum(1, keepdim=True)) <= 1e-5


def test_a_log_sum_exp_of_other_scores(backend):
    """The result is of other numbers, but of numbers."""
    query, key, mask = make(1, 2, 50, 16, "full")
    lse = row_normalizer(query, key, mask, 0.25)
    for offset in (-900.0, 900.0, -90.0):
        found = significance(query, key, lse=lse + offset * (torch.arange(50) > 0), backend=backend)
        assert found.isfinite().all() and (found >= 0).all()
