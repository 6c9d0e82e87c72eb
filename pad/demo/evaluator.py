"""The demo's speech, and the scores of a student on the held-out part."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pad.demo.config import DemoRecipe
from pad.demo.corpus import SAMPLING_RATE, SpokenSentence, speak
from pad.demo.intervals import Counts
from pad.demo.probe import linear_probe, mean_states
from pad.demo.scores import found_intents, found_sentences, found_words
from pad.demo.sentences import INTENTS, commands, free_sentences
from pad.demo.words import Encoded, encode, word_embeddings
from pad.step.collate import Collator, SpeechTextDataset
from pad.step.objective import Objective
from pad.step.teacher import Teacher

SPLITS = ("train", "dev", "test")


@dataclass
class Corpus:
    """Spoken sentences: free ones and commands, by split."""

    free: dict[str, list[SpokenSentence]]
    commands: dict[str, list[SpokenSentence]]


def build_corpus(config: DemoRecipe, folder: Path, progress) -> Corpus:
    """Synthesize everything; progress is called with the number of utterances done."""
    source = random.Random(config.seed)
    held_out = config.held_out_sentences
    sentences = free_sentences(config.free_sentences + 2 * held_out, source)
    source.shuffle(sentences)
    parts = {"dev": sentences[:held_out], "test": sentences[held_out : 2 * held_out],
             "train": sentences[2 * held_out :]}  # fmt: skip
    per_intent = {"train": config.commands_per_intent, "dev": config.held_out_per_intent,
                  "test": config.held_out_per_intent}  # fmt: skip

    def spoken(kind: str, split: str, pairs: list) -> list[SpokenSentence]:
        return speak(pairs, split, folder / f"{kind}-{split}", source, progress)

    return Corpus(
        {split: spoken("free", split, [(text, None) for text in parts[split]]) for split in SPLITS},
        {split: spoken("commands", split, commands(split, per_intent[split], source)) for split in SPLITS},
    )


def corpus_size(config: DemoRecipe) -> int:
    """Number of utterances of a corpus."""
    commands_of_all = config.commands_per_intent + 2 * config.held_out_per_intent
    return config.free_sentences + 2 * config.held_out_sentences + len(INTENTS) * commands_of_all


@dataclass
class Scores:
    """The scores of one student on held-out speech: words and sentences found, and what a probe hears.

    words, sentences: on free sentences; words_in_commands; recordings: words, by source; intents: by the linear probe
    whose result is `probe`; loss: the mean objective on free sentences, without priors.
    """

    words: Counts
    sentences: Counts
    words_in_commands: Counts
    recordings: dict[str, Counts]
    intents: Counts
    probe: dict
    loss: float


@dataclass
class Evaluator:
    """Scores students with one teacher, always on the same speech; recordings: real speech by source."""

    corpus: Corpus
    recordings: dict[str, list[SpokenSentence]]
    collator: Collator
    teacher: Teacher
    objective: Objective
    _words: dict[str, torch.Tensor] = field(default_factory=dict)

    def evaluate(self, student, split: str = "test") -> Scores:
        """Scores on a split; settings are chosen on "dev" and reported on "test"."""
        spoken = {name: self.encode(student, self.corpus.commands[name]) for name in {"train", "dev", split}}
        free = self.corpus.free[split]
        heard = self.encode(student, free)
        transcripts = [item.transcript for item in free]
        probe = self.probe({name: mean_states(frames) for name, frames in spoken.items()}, split)
        return Scores(
            words=self.found_words(heard, free),
            sentences=found_sentences(heard, [self.words_of(text) for text in transcripts], transcripts),
            words_in_commands=self.found_words(spoken[split], self.corpus.commands[split]),
            recordings={
                source: self.found_words(self.encode(student, items), items)
                for source, items in self.recordings.items()
            },
            intents=found_intents(probe, len(INTENTS)),
            probe=probe,
            loss=self.loss(heard, free),
        )

    def found_words(self, encoded: list[Encoded], sentences: list[SpokenSentence]) -> Counts:
        """Words found in encoded sentences."""
        words = [item.words for item in sentences]
        return found_words(encoded, words, [self.words_of(item.transcript) for item in sentences])

    def encode(self, student, sentences: list[SpokenSentence]) -> list[Encoded]:
        """Frames of each sentence."""
        return encode(student, self.collator, SpeechTextDataset(sentences, SAMPLING_RATE))

    def probe(self, features: dict[str, torch.Tensor], split: str = "test") -> dict:
        """Intent accuracy of a linear classifier; features [utterances, F] of the commands by split."""
        intents = list(INTENTS)
        labeled = {
            name: (values, torch.tensor([intents.index(str(item.intent)) for item in self.corpus.commands[name]]))
            for name, values in features.items()
        }
        return linear_probe(labeled["train"], labeled["dev"], labeled[split])

    def teacher_probe(self, split: str = "test") -> dict:
        """The same probe on the teacher's mean word embedding of the text: what could be reached."""
        features = {
            name: torch.stack([self.words_of(item.transcript).mean(dim=0) for item in self.corpus.commands[name]])
            for name in {"train", "dev", split}
        }
        return self.probe(features, split)

    def words_of(self, transcript: str) -> torch.Tensor:
        """Word embeddings [words, D] of a transcript."""
        if transcript not in self._words:
            self._words[transcript] = word_embeddings(self.teacher, transcript)
        return self._words[transcript]

    def loss(self, encoded: list[Encoded], sentences: list[SpokenSentence]) -> float:
        """Mean objective of encoded sentences against their own words."""
        losses = []
        for frames, item in zip(encoded, sentences):
            text = self.words_of(item.transcript)
            all_frames = torch.ones(1, len(frames.frames), dtype=torch.bool)
            all_words = torch.ones(1, len(text), dtype=torch.bool)
            losses.append(float(self.objective(frames.frames[None], text[None], all_frames, all_words)))
        return sum(losses) / len(losses)
