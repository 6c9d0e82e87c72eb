"""Scores of an encoder by utterance: which words and sentences it finds, and which intents a probe hears."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from pad.demo.intervals import Counts
from pad.demo.words import Encoded, word_hits


def found_words(encoded: Sequence[Encoded], words: Sequence, embeddings: Sequence[torch.Tensor]) -> Counts:
    """Words whose most similar frame lies within their time; arguments as for `pad.demo.words.word_hits`."""
    trials, hits, chance = word_hits(encoded, words, embeddings).numpy().T
    return Counts(hits, trials, chance)


@torch.no_grad()
def found_sentences(
    encoded: Sequence[Encoded], embeddings: Sequence[torch.Tensor], transcripts: Sequence[str]
) -> Counts:
    """Utterances whose own sentence is first of all sentences (retrieval@1).

    A sentence fits an utterance as well as, on average, each of its words fits the frame most similar to it.
    embeddings: per utterance [words, D]. Equal transcripts are one sentence.
    """
    sentences = list(dict.fromkeys(transcripts))
    numbers = {sentence: number for number, sentence in enumerate(sentences)}
    of_sentence = dict(zip(transcripts, embeddings))
    words = functional.normalize(torch.cat([of_sentence[sentence] for sentence in sentences]).float(), dim=-1)
    lengths = torch.tensor([len(of_sentence[sentence]) for sentence in sentences])
    owners = torch.arange(len(sentences)).repeat_interleave(lengths)
    first = []
    for utterance in encoded:
        best = (functional.normalize(utterance.frames, dim=-1) @ words.T).amax(dim=0)
        fit = torch.zeros(len(sentences)).index_add_(0, owners, best) / lengths
        first.append(int(fit.argmax()))
    own = np.array([numbers[transcript] for transcript in transcripts])
    ones = np.ones(len(own))
    return Counts((np.array(first) == own).astype(float), ones, ones / len(sentences))


def found_intents(probe: dict, intents: int) -> Counts:
    """Utterances whose intent a linear probe hears; probe: what `linear_probe` returns."""
    correct = probe["correct"].numpy().astype(float)
    ones = np.ones(len(correct))
    return Counts(correct, ones, ones / intents)
