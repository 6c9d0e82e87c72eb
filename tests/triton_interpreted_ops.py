"""The Triton kernels of significance, spans and pooling under the interpreter; test_triton.py runs this."""

import pytest
import torch
from inputs import KINDS, make_inputs, make_mask, relative_error
from test_alignment import BAR
from test_significance import make, row_normalizer
from triton_interpreter import ALL_DTYPES

from pad_kernels.backends.reference import BACKEND as reference
from pad_kernels.backends.triton import BACKEND as backend
from pad_kernels.backends.triton.memory import allocate
from pad_kernels.backends.triton.norms import find_norms
from pad_kernels.inputs import ANCHORS, Needed, PoolingInputs, SpanInputs

pytest_plugins = ("triton_interpreter",)
significance = backend.significance
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
    # Few distinct weights: ties, and zeros, which are never chosen.
    frame_weights = torch.randint(0, 6, (batch, frames), generator=generator) / 7.0
    tokens = torch.randint(0, most + 1, (batch,), generator=generator)
    wanted = torch.randint(0, most + 4, (batch,), generator=generator)
    xi = torch.rand(batch, generator=generator, dtype=torch.float64) * 9 if with_xi else None
    return SpanInputs(frame_weights * mask, mask, tokens, wanted, most, [0.3, 1.0, 2.5], xi, anchors)


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
    frame_weights = torch.rand(2, frames)
    frame_weights[1] = (frame_weights[1] * 5).floor()  # ties in every block
    num_anchors = torch.tensor([30, frames // 2 if anchors != "peaks" else 9])
    inputs = inputs._replace(frame_weights=frame_weights * inputs.frame_mask, num_anchors=num_anchors)
    for found, expected in zip(backend.select_spans(inputs), reference.select_spans(inputs)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anchors_of_weights_of_any_size(dtype):
    """From the smallest number to infinity, with neighbors that differ in their last bit."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 0x7F800001, (6, 90), generator=generator, dtype=torch.int32)
    bits[1] = torch.arange(90, dtype=torch.int32)  # numbers next to 0
    bits[2] = 0x7F800000 - torch.arange(90, dtype=torch.int32)  # and next to infinity
    bits[3] = 0x3FFFFFC0 + torch.arange(90, dtype=torch.int32)  # around 2, where the highest bit begins
    bits[4] = bits[4, :1]
    bits[5] = 0x7F800000
    frame_weights = bits.view(torch.float32)[:, torch.randperm(90, generator=generator)].to(dtype)
    counts = torch.tensor([20, 45, 31, 63, 7, 8])
    mask = torch.ones(6, 90, dtype=torch.bool)
    for anchors in ("topk", "peaks"):
        inputs = SpanInputs(frame_weights, mask, counts, counts, 63, [1.0, 2.0], None, anchors)
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
    pooling = PoolingInputs(inputs.speech, inputs.text, inputs.frame_weights.clamp(min=0), token_weights)
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


@ALL_DTYPES
@pytest.mark.parametrize("tokens, width", [(1, 8), (7, 200), (9, 1024), (17, 1032), (8, 2048)])
def test_norms_of_tokens(dtype, tokens, width):
    """Of each row by itself, whatever the others hold; rows may lie apart."""
    generator = torch.Generator().manual_seed(tokens)
    text = torch.randn(2, tokens, width + 8, generator=generator).to(dtype)[..., :width]
    text[0, 0] = float("nan")
    text[1, -1] = 0
    (inverse,) = allocate(text.device, (torch.float32, 2, tokens))
    find_norms(text, inverse)
    expected = 1 / text.double().norm(dim=2).clamp(min=1e-8)
    found = inverse.tensor().double()
    assert torch.equal(found.isnan(), expected.isnan())
    assert (found / expected - 1).nan_to_num(0).abs().max() < 1e-6
