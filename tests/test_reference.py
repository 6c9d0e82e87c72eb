"""The reference backend against the oracle's loops and against finite differences."""

import numpy as np
import oracle
import pytest
import torch
from inputs import KINDS, make_inputs, make_mask

from pad_kernels import alignment_matrix, pad_loss, select_spans, significance, significance_from_attentions
from pad_kernels.backends import reference
from pad_kernels.inputs import AlignmentInputs, Needed, Saved

EXACT = 1e-12


def close(value, truth):
    return np.allclose(np.asarray(value), np.asarray(truth), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("units", [None, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_alignment(kind, units, temperature):
    inputs = make_inputs(4, 13, 6, 5, kind=kind, units=units, dtype=torch.float64, seed=3)
    found = reference.alignment(inputs.at(temperature))
    spans = None if units is None else (inputs.start, inputs.end)
    real, prior = inputs.frame_weights >= 0, inputs.frame_weights.clamp(min=0)
    matrix = alignment_matrix(*inputs[:2], spans, real, inputs.token_mask, prior, temperature, "reference")
    for b in range(4):
        speech, text, frame_weights, token_mask = (x[b].numpy() for x in inputs[:4])
        spans = None if units is None else list(zip(inputs.start[b].tolist(), inputs.end[b].tolist()))
        similarity, unit, log_normalizer, rows = oracle.align_utterance(
            speech, text, frame_weights, token_mask, spans, temperature
        )
        assert close(found[0][b], similarity)
        assert found[1][b].tolist() == unit.tolist()
        assert close(found[2][b], log_normalizer)
        assert close(matrix[b], rows)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 5])
@pytest.mark.parametrize("kind", ["ragged", "holes", "zero_priors", "some_empty", "all_empty"])
def test_gradient_is_exact(kind, units, temperature):
    inputs = make_inputs(2, 6, 3, 4, kind=kind, units=units, dtype=torch.float64, seed=5)
    speech, text = (x.nan_to_num(0).requires_grad_() for x in inputs[:2])

    def similarity(speech, text):
        return reference.alignment(AlignmentInputs(speech, text, *inputs[2:], temperature)).similarity

    assert torch.autograd.gradcheck(similarity, (speech, text))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_equals_autograd(kind, units, temperature):
    """The gradient written out is autograd's; NaN where nothing takes part reaches neither."""
    inputs = make_inputs(3, 40, 7, 9, kind=kind, units=units, dtype=torch.float64)
    speech, text = (x.requires_grad_() for x in inputs[:2])
    outputs = reference.alignment(inputs.at(temperature))
    grad = torch.randn(outputs[0].shape, dtype=torch.float64)
    by_autograd = torch.autograd.grad(outputs[0], (speech, text), grad)
    saved = Saved(*(x.detach() for x in outputs))
    detached = AlignmentInputs(speech.detach(), text.detach(), *inputs[2:], temperature)
    written_out = reference.BACKEND.alignment_backward(grad, detached, saved, Needed(True, True))
    for one, other in zip(by_autograd, written_out):
        assert one.isfinite().all()
        assert close(one, other)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("units", [None, 8])
def test_backward_equals_autograd_below_the_smallest_norm(units, temperature):
    inputs = make_inputs(2, 12, 4, 5, kind="full", units=units, dtype=torch.float64)
    inputs.speech[:, ::2] *= 1e-10
    inputs.text[:, 1] *= 1e-11
    speech, text = (x.requires_grad_() for x in inputs[:2])
    outputs = reference.alignment(inputs.at(temperature))
    by_autograd = torch.autograd.grad(outputs[0].sum(), (speech, text))
    detached = AlignmentInputs(speech.detach(), text.detach(), *inputs[2:], temperature)
    saved = Saved(*(x.detach() for x in outputs))
    grad = torch.ones_like(saved.similarity)
    written_out = reference.BACKEND.alignment_backward(grad, detached, saved, Needed(True, True))
    for one, other in zip(by_autograd, written_out):
        atol = EXACT * float(one.abs().max())
        assert np.allclose(one.numpy(), other.numpy(), rtol=EXACT, atol=atol)


def test_gradient_of_zero_vectors_is_finite():
    speech = torch.zeros(1, 4, 3, dtype=torch.float64, requires_grad=True)
    text = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    frame_weights, mask = torch.full((1, 4), 0.25, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    reference.alignment(AlignmentInputs(speech, text, frame_weights, mask, None, None, 0.1)).similarity.sum().backward()
    assert (speech.grad == 0).all() and (text.grad == 0).all()


@pytest.mark.parametrize("how", ["topk", "peaks", "stride"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_select_spans(kind, how, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, frames = 6, 31
    mask = make_mask(kind, batch, frames, generator)
    # Few distinct values, so that there are many ties, and some zeros.
    prior = torch.randint(0, 5, (batch, frames), generator=generator).double() / 4
    tokens = torch.randint(0, 9, (batch,), generator=generator)
    wanted = torch.randint(0, 12, (batch,), generator=generator) if seed else tokens
    xi = torch.rand(batch, generator=generator).double() * 12 if seed == 2 else None
    scales = (0.5, 1, 2) if seed else (0.3,)
    given = None if seed == 1 and how == "topk" else prior
    start, end = select_spans(given, mask, tokens, num_anchors=wanted, scales=scales, anchors=how, xi=xi,
                              max_anchors=12, backend="reference")  # fmt: skip
    for b in range(batch):
        expected = oracle.spans_of(
            None if given is None else prior[b].tolist(), mask[b].tolist(), int(tokens[b]), int(wanted[b]),
            scales, None if xi is None else float(xi[b]), how,
        )  # fmt: skip
        found = list(zip(start[b].tolist(), end[b].tolist()))
        assert found == expected + [(0, 0)] * (12 * len(scales) - len(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_significance(kind):
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(3, 2, 11, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = make_mask(kind, 3, 11, generator)
    per_utterance = zip(query.numpy(), key.numpy(), mask.numpy())
    expected = [oracle.significance_utterance(q, k, real, 0.5) for q, k, real in per_utterance]
    masked = ~mask[:, None, :, None]
    found = significance(
        query.masked_fill(masked, torch.nan), key.masked_fill(masked, torch.nan), mask, backend="reference"
    )
    assert close(found, np.stack(expected))
    scores = (query @ key.mT * 0.5).masked_fill(~mask[:, None, None, :], -torch.inf)
    lse = scores.logsumexp(3).masked_fill(~mask[:, None], torch.nan)
    assert close(significance(query, key, mask, lse=lse, backend="reference"), np.stack(expected))
    maps = torch.where(mask[:, None, None, :] & mask[:, None, :, None], scores.softmax(3), torch.nan)
    assert close(significance_from_attentions(maps, mask), np.stack(expected))
    assert close(significance_from_attentions([maps.mean(1), maps], mask), np.stack(expected))


def test_significance_over_many_row_blocks():
    query, key = torch.randn(2, 1, 2, 600, 4, dtype=torch.float64)
    maps = (query @ key.mT * 0.5).softmax(3)
    assert close(significance(query, key, backend="reference"), significance_from_attentions(maps))


@pytest.mark.parametrize("level", ["global", "token", "span"])
@pytest.mark.parametrize("temperature", [0.0, 0.2])
@pytest.mark.parametrize("priors", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_loss(kind, priors, temperature, level):
    generator = torch.Generator().manual_seed(2)
    batch, frames, tokens = 5, 17, 6
    speech, text = (torch.randn(batch, n, 3, generator=generator).double() for n in (frames, tokens))
    speech_mask, text_mask = (make_mask(kind, batch, n, generator) for n in (frames, tokens))
    speech_prior = text_prior = None
    if priors:
        speech_prior, text_prior = (
            (torch.rand(batch, n, generator=generator).double() - 0.2).clamp(min=0) for n in (frames, tokens)
        )
        text_prior[0] = 0
    expected = []
    for b in range(batch):
        p, q = (None if x is None else x[b].tolist() for x in (speech_prior, text_prior))
        real = int(text_mask[b].sum())
        spans = oracle.spans_of(p, speech_mask[b].tolist(), real, real, (0.5, 1, 2), None, "topk")
        values = (speech[b].numpy(), text[b].numpy(), speech_mask[b].tolist(), text_mask[b].tolist())
        expected.append(oracle.loss_utterance(*values, p, q, level, temperature, spans))
    arguments = dict(level=level, temperature=temperature, backend="reference")
    inputs = (speech, text, speech_mask, text_mask, speech_prior, text_prior)
    counted = [loss for loss in expected if loss is not None]
    assert close(pad_loss(*inputs, **arguments, reduction="none"), [loss or 0 for loss in expected])
    assert close(pad_loss(*inputs, **arguments), sum(counted) / max(len(counted), 1))
    assert close(pad_loss(*inputs, **arguments, reduction="sum"), sum(counted))
