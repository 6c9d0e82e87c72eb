"""The demo's scores by utterance, and their bootstrap intervals."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from pad.demo.corpus import word_times  # noqa: E402
from pad.demo.intervals import Counts, interval  # noqa: E402
from pad.demo.probe import linear_probe  # noqa: E402
from pad.demo.scores import found_intents, found_sentences, found_words  # noqa: E402
from pad.demo.words import Encoded  # noqa: E402


def heard(frames):
    centers = torch.arange(len(frames), dtype=torch.float64) / 10 + 0.05
    return Encoded(frames, centers, means=frames.mean(dim=0, keepdim=True))


def test_found_words_are_counted_by_utterance():
    words, embeddings = word_times("one two", {0: 0.0, 4: 0.5}, 1.0), torch.eye(2)
    right, wrong = (heard(rows.repeat_interleave(5, dim=0)) for rows in (torch.eye(2), torch.eye(2).flip(0)))
    glued = word_times("one two", {0: 0.0}, 1.0)  # where neither word has a known time
    counts = found_words([right, wrong, right], [words, words, glued], [embeddings] * 3)
    assert counts.hits.tolist() == [2, 0, 0] and counts.trials.tolist() == [2, 2, 0]
    assert counts.rate == 0.5 and counts.chance_rate == 0.5


def test_the_right_sentence_is_found_whatever_its_length():
    vocabulary = torch.eye(5)
    texts = ["a b", "c", "c d e", "a b"]
    embeddings = [vocabulary[["abcde".index(word) for word in text.split()]] for text in texts]
    speech = [heard(rows.repeat_interleave(3, dim=0)) for rows in embeddings]
    counts = found_sentences(speech, embeddings, texts)
    assert counts.hits.tolist() == [1, 1, 1, 1] or counts.hits.tolist() == [1, 1, 0, 1]  # "c" fits the third too
    assert counts.chance_rate == pytest.approx(1 / 3)  # two utterances have the same sentence
    assert found_sentences(speech[:2][::-1], embeddings[:2], texts[:2]).hits.tolist() == [0, 0]


def test_found_intents_are_those_of_the_probe():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(labels, 5) + 0.1 * torch.randn(60, 5, generator=generator)
    probe = linear_probe((features[:30], labels[:30]), (features[30:45], labels[30:45]), (features[45:], labels[45:]))
    counts = found_intents(probe, 3)
    assert counts.rate == probe["accuracy"] == 1.0 and len(counts.hits) == 15
    assert counts.chance_rate == pytest.approx(1 / 3)


def draw(generator, rate, runs=4, utterances=300):
    trials = generator.integers(1, 9, utterances)
    return [Counts(generator.binomial(trials, rate), trials, trials * 0.1) for _ in range(runs)]


def test_an_interval_holds_the_rate_and_narrows_with_the_utterances():
    generator = np.random.default_rng(0)
    many, few = draw(generator, 0.3)[0], draw(generator, 0.3, utterances=30)[0]
    low, high = many.interval()
    assert low < many.rate < high and low < 0.3 < high
    standard_error = np.sqrt(0.3 * 0.7 / many.trials.sum())
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.25)
    assert np.subtract(*few.interval()[::-1]) > 2 * (high - low)


def test_a_paired_difference_is_sharper_than_its_parts():
    generator = np.random.default_rng(1)
    ours = draw(generator, 0.3)
    theirs = [Counts(np.maximum(run.hits - (np.arange(300) % 7 == 0), 0), run.trials, run.chance) for run in ours]
    low, high = interval(ours, theirs)
    difference = np.mean([a.rate - b.rate for a, b in zip(ours, theirs)])
    assert 0 < low < difference < high and high - low < np.subtract(*interval(ours)[::-1])
    assert interval(ours, ours) == (0.0, 0.0)


def test_seeds_that_disagree_widen_the_interval():
    trials = np.full(300, 5)
    alike, apart = ([Counts(trials * rate, trials, trials) for rate in rates] for rates in ([0.4] * 4, [0.2, 0.6] * 2))
    assert interval(alike) == (0.4, 0.4)
    low, high = interval(apart)
    assert low < 0.3 and high > 0.5


def test_runs_that_do_not_fit_together_are_refused():
    runs = draw(np.random.default_rng(2), 0.5)
    with pytest.raises(ValueError, match="baseline: expected a run for each of 4, got 1"):
        interval(runs, runs[:1])
    with pytest.raises(ValueError, match="same utterances"):
        interval([runs[0], draw(np.random.default_rng(3), 0.5)[0]])
