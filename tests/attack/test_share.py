"""A fast share of the fuzz for every run of the tests, and what it is judged by: two independent oracles agree."""

import cases
import numpy as np
import pytest
import test_fuzz
import torch
import truth
from oracle import align_utterance, loss_utterance

from pad_kernels import available_backends

FIRST = 10**6  # seeds that the whole fuzz does not reach


@pytest.mark.parametrize("op, count", [("loss", 60), ("align", 30), ("spans", 30), ("significance", 20), ("maps", 5)])
@pytest.mark.parametrize("backend", available_backends())
def test_cases(op, count, backend):
    test_fuzz.run(op, backend, range(FIRST, FIRST + count)).check()


def plain(value):
    """As the loops take it."""
    return None if value is None else value.double().nan_to_num(0).numpy()


def test_the_oracles_agree():
    compared = 0
    for seed in range(FIRST, FIRST + 40):
        case = cases.alignment(seed)
        batch, frames, _ = case.speech.shape
        case = case._replace(reduction="none")
        values = truth.loss(case, torch.ones(batch), None)[0].value
        for b in range(min(batch, 2)):
            masks = [np.ones(x.shape[1], bool) if mask is None else (mask[b] != 0).numpy()
                     for x, mask in ((case.speech, case.speech_mask), (case.text, case.text_mask))]  # fmt: skip
            priors = [None if x is None else plain(x[b]) for x in (case.speech_prior, case.text_prior)]
            spans = None
            if case.level == "span":
                given = case.spans
                spans = truth.spans_chosen(case, b) if given is None else list(zip(*(x[b].tolist() for x in given)))
            sides = plain(case.speech[b]), plain(case.text[b])
            expected = loss_utterance(*sides, *masks, *priors, case.level, case.temperature, spans)
            assert abs(values[b].item() - (expected or 0)) <= 1e-9 * max(abs(expected or 0), 1), seed
            compared += expected is not None
    assert compared > 20


def test_a_small_error_is_seen(monkeypatch):
    """Of a thousandth, in a loss and in an alignment."""
    for name in ("pad_loss", "align"):
        right = getattr(test_fuzz, name)

        def wrong(*arguments, right=right, **options):
            found = right(*arguments, **options)
            return found * 1.001 if isinstance(found, torch.Tensor) else found._replace(similarity=found[0] * 1.001)

        monkeypatch.setattr(test_fuzz, name, wrong)
    for op in ("loss", "align"):
        assert len(test_fuzz.run(op, "reference", range(FIRST, FIRST + 20)).failures) >= 5


def test_the_alignment_in_loops():
    case = cases.alignment(FIRST + 3, for_loss=False)._replace(
        spans=None, speech_prior=None, speech_mask=None, text_mask=None
    )
    case = case._replace(speech=case.speech.nan_to_num(1), text=case.text.nan_to_num(1), temperature=0.1)
    frames, tokens = case.speech.shape[1], case.text.shape[1]
    for b in range(len(case.speech)):
        _, similarity, matrix, normalizer, _ = truth.align(case, b)
        expected = align_utterance(plain(case.speech[b]), plain(case.text[b]), np.full(frames, 1 / frames),
                                   np.ones(tokens, bool), None, 0.1)  # fmt: skip
        for found, correct in ((similarity, expected[0]), (normalizer, expected[2]), (matrix, expected[3])):
            assert np.allclose(found.numpy(), correct, rtol=1e-9, atol=1e-12)
