"""The demo's speech, and the scores of a student on the held-out part."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pad.demo.config import DemoRecipe
from pad.demo.corpus import SAMPLING_RATE, SpokenSentence, speak
from pad.demo.sentences import INTENTS, commands, free_sentences
from pad.evaluate.probe import linear_probe, mean_states
from pad.evaluate.words import Encoded, encode, word_embeddings, word_hit_rate
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
    """The scores of one student. Hit rates: {"hit_rate", "chance", "words"}; loss: on held-out free sentences."""

    probe: dict
    hits: dict
    hits_in_commands: dict
    hits_in_recordings: dict | None
    loss: float


@dataclass
class Evaluator:
    """Scores students with one teacher, always on the same speech."""

    corpus: Corpus
    recordings: list[SpokenSentence]
    collator: Collator
    teacher: Teacher
    objective: Objective
    _words: dict[str, torch.Tensor] = field(default_factory=dict)

    def evaluate(self, student, split: str = "test") -> Scores:
        """Scores on a split; settings are chosen on "dev" and reported on "test"."""
        spoken = {name: self.encode(student, self.corpus.commands[name]) for name in {"train", "dev", split}}
        free = self.corpus.free[split]
        heard = self.encode(student, free)
        recordings = None
        if self.recordings:
            recordings = self.hits(self.encode(student, self.recordings), self.recordings)
        return Scores(
            self.probe({name: mean_states(frames) for name, frames in spoken.items()}, split),
            self.hits(heard, free),
            self.hits(spoken[split], self.corpus.commands[split]),
            recordings,
            self.loss(heard, free),
        )

    def encode(self, student, sentences: list[SpokenSentence]) -> list[Encoded]:
        """Frames of each sentence."""
        return encode(student, self.collator, SpeechTextDataset(sentences, SAMPLING_RATE))

    def probe(self, features: dict[str, torch.Tensor], split: str = "test") -> dict:
        """Intent accuracy of a linear classifier; features [utterances, F] of the commands by split."""
        intents = list(INTENTS)
        labelled = {
            name: (values, torch.tensor([intents.index(str(item.intent)) for item in self.corpus.commands[name]]))
            for name, values in features.items()
        }
        return linear_probe(labelled["train"], labelled["dev"], labelled[split])

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

    def hits(self, encoded: list[Encoded], sentences: list[SpokenSentence]) -> dict:
        """Word hit rate of encoded sentences."""
        return word_hit_rate(
            encoded,
            [item.words for item in sentences],
            [self.words_of(item.transcript) for item in sentences],
        )

    def loss(self, encoded: list[Encoded], sentences: list[SpokenSentence]) -> float:
        """Mean objective of encoded sentences against their own words."""
        losses = []
        for frames, item in zip(encoded, sentences):
            text = self.words_of(item.transcript)
            all_frames = torch.ones(1, len(frames.frames), dtype=torch.bool)
            all_words = torch.ones(1, len(text), dtype=torch.bool)
            losses.append(float(self.objective(frames.frames[None], text[None], all_frames, all_words)))
        return sum(losses) / len(losses)
