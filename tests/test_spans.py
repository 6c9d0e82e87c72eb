"""select_spans of every backend against the reference, and what its arguments mean."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import KINDS, make_mask

from pad_kernels import select_spans

HOW = ["topk", "peaks", "stride"]


def equal(one, other):
    return torch.equal(one.start, other.start) and torch.equal(one.end, other.end)


@settings(max_examples=200, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.integers(1, 5), st.integers(1, 200), st.sampled_from(KINDS), st.sampled_from(HOW), st.integers(1, 40),
    st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([(0.5, 1, 2), (1,), (0.01, 30.0)]), st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(backend, batch, frames, kind, how, room, tied, own_xi, dtype, scales, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = make_mask(kind, batch, frames, generator)
    prior = torch.randint(0, 6 if tied else 1000, (batch, frames), generator=generator).to(dtype)
    prior[~mask] = torch.nan
    tokens, wanted = torch.randint(0, room + 3, (2, batch), generator=generator)
    xi = torch.rand(batch, generator=generator).double() * 20 if own_xi else None
    arguments = dict(num_anchors=wanted, scales=scales, anchors=how, xi=xi, max_anchors=room)
    found = select_spans(prior, mask, tokens, **arguments, backend=backend)
    expected = select_spans(prior, mask, tokens, **arguments, backend="reference")
    assert found.start.dtype == found.end.dtype == torch.int32
    assert found.start.shape == (batch, room * len(scales))
    assert equal(found, expected)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_priors_of_any_size(backend, how, dtype):
    """From the smallest numbers of the dtype on; each several times."""
    kind = torch.finfo(dtype)
    sizes = torch.tensor([0, kind.smallest_normal / 2**10, kind.smallest_normal, 1e-30, 1, 1e30, 3e36], dtype=dtype)
    prior = sizes[torch.randint(len(sizes), (3, 70), generator=torch.Generator().manual_seed(0))]
    for tokens in (1, 9, 33, 70):
        found = select_spans(prior, None, tokens, anchors=how, backend=backend)
        assert equal(found, select_spans(prior, None, tokens, anchors=how, backend="reference"))


@pytest.mark.parametrize("how", HOW)
def test_batches_that_threads_share(backend, how):
    generator = torch.Generator().manual_seed(0)
    prior, mask = torch.rand(48, 200, generator=generator), make_mask("ragged", 48, 200, generator)
    tokens = torch.arange(48)
    found = select_spans(prior, mask, tokens, anchors=how, backend=backend)
    assert equal(found, select_spans(prior, mask, tokens, anchors=how, backend="reference"))


def test_worked_example(backend):
    """12 frames, 3 tokens: xi = 4, widths 2, 4, 8; anchors at 2, 3 and 9."""
    prior = torch.zeros(1, 12)
    prior[0, [9, 2, 3]] = torch.tensor([0.2, 0.5, 0.3])
    start, end = select_spans(prior, None, torch.tensor([3]), backend=backend)
    assert start.tolist() == [[1, 0, 0, 2, 1, 0, 8, 7, 5]]
    assert end.tolist() == [[3, 4, 6, 4, 5, 7, 10, 11, 12]]
    start, end = select_spans(prior, None, torch.tensor([3]), anchors="peaks", backend=backend)
    assert start.tolist() == [[1, 0, 0, 8, 7, 5, 0, 0, 0]]
    start, end = select_spans(prior, None, torch.tensor([3]), anchors="stride", scales=(1,), backend=backend)
    assert list(zip(start[0].tolist(), end[0].tolist())) == [(0, 4), (4, 8), (8, 12)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("count", [16, 17, 40])
def test_many_scales(backend, how, count):
    """More than a launch takes at once on a GPU."""
    generator = torch.Generator().manual_seed(count)
    prior, mask = torch.rand(3, 90, generator=generator), make_mask("holes", 3, 90, generator)
    arguments = dict(scales=[0.1 * (scale + 1) for scale in range(count)], anchors=how)
    found = select_spans(prior, mask, torch.tensor([4, 9, 0]), **arguments, backend=backend)
    assert equal(found, select_spans(prior, mask, torch.tensor([4, 9, 0]), **arguments, backend="reference"))


def test_left_padding_clips_to_the_real_frames(backend):
    mask = torch.arange(10)[None] >= 6
    start, end = select_spans(None, mask, 2, scales=(2,), backend=backend)
    assert list(zip(start[0].tolist(), end[0].tolist())) == [(6, 9), (7, 10)]


def test_without_a_prior_anchors_are_strided(backend):
    mask = make_mask("holes", 3, 50, torch.Generator().manual_seed(0))
    tokens = torch.tensor([3, 7, 1])
    expected = select_spans(torch.ones(3, 50), mask, tokens, anchors="stride", backend=backend)
    assert equal(select_spans(None, mask, tokens, anchors="peaks", backend=backend), expected)


def test_numbers_stand_for_the_whole_batch(backend):
    prior = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    tensor = select_spans(prior, None, torch.full((3,), 5), num_anchors=torch.full((3,), 4),
                          xi=torch.full((3,), 6.0), backend=backend)  # fmt: skip
    assert equal(select_spans(prior, None, 5, num_anchors=4, xi=6, backend=backend), tensor)


def test_room_beyond_the_anchors_stays_empty(backend):
    start, end = select_spans(torch.ones(2, 30), None, 4, num_anchors=2, max_anchors=5, backend=backend)
    assert start.shape == (2, 15)
    assert (start[:, 6:] == end[:, 6:]).all() and (start[:, :6] < end[:, :6]).all()


@pytest.mark.parametrize("batch, frames, tokens", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
@pytest.mark.parametrize("how", HOW)
def test_nothing_to_select(backend, batch, frames, tokens, how):
    start, end = select_spans(torch.rand(batch, frames), None, tokens, anchors=how, backend=backend)
    assert start.shape == (batch, 3 * tokens) and torch.equal(start, end)


def test_layouts(backend):
    prior = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).T
    mask = (torch.arange(80) % 7 > 0)[::2].expand(3, 40)
    tokens = torch.tensor([4, 0, 5, 0, 6])[::2]
    found = select_spans(prior, mask, tokens, backend=backend)
    plain = (x.contiguous() for x in (prior, mask, tokens))
    assert equal(found, select_spans(*plain, backend="reference"))
