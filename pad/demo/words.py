"""Word hit rates: how often the frame or unit most similar to a word is where the word is spoken."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from pad.priors.recorder import record_significance
from pad.step.collate import Collator, SpeechTextDataset, to_device
from pad.step.objective import Objective
from pad.step.teacher import Teacher
from pad_kernels import align


@dataclass(frozen=True)
class Encoded:
    """One utterance as the student encodes it.

    frames: [m, D], the last hidden state; centers: of the frames in seconds [m]; means: [layers + 1, D], the mean
    frame of each hidden state; prior: significance of the frames [m].
    """

    frames: torch.Tensor
    centers: torch.Tensor
    means: torch.Tensor
    prior: torch.Tensor | None = None


@torch.no_grad()
def encode(
    encoder, collator: Collator, dataset: SpeechTextDataset, batch_size: int = 32, with_prior: bool = False
) -> list[Encoded]:
    """Run a student's encoder over a dataset in evaluation mode; the results are on the CPU."""
    encoder.eval()
    layout, rate = collator.front_end.layout, dataset.sampling_rate
    device = next(encoder.parameters()).device
    order = sorted(range(len(dataset)), key=lambda number: dataset.utterances[number].duration)
    encoded: dict[int, Encoded] = {}
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        batch = to_device(collator([dataset[number] for number in numbers]), device)
        mask = batch["frame_mask"]
        lengths = mask.sum(dim=1).tolist()
        with record_significance(encoder, mask) if with_prior else nullcontext() as record:
            outputs = encoder(**batch["speech"], output_hidden_states=True)
        frames = outputs.last_hidden_state.float().cpu()
        share = mask / mask.sum(dim=1, keepdim=True)
        means = torch.einsum("lbmd,bm->bld", torch.stack(outputs.hidden_states).float(), share).cpu()
        priors = None if record is None else record.prior().cpu()
        for row, number in enumerate(numbers):
            length = lengths[row]
            prior = None if priors is None else priors[row, :length].clone()
            encoded[number] = Encoded(frames[row, :length].clone(), layout.centers(length) / rate, means[row], prior)
    return [encoded[number] for number in range(len(dataset))]


@torch.no_grad()
def word_embeddings(teacher: Teacher, transcript: str) -> torch.Tensor:
    """[words, D]: for each word of a transcript (separated by spaces) the mean of its token embeddings."""
    words = transcript.split()
    device = next(teacher.model.parameters()).device
    text = teacher.tokenizer([words], is_split_into_words=True, return_tensors="pt", truncation=True).to(device)
    owners = text.word_ids(0)
    mask = torch.tensor([[owner is not None for owner in owners]], device=device)
    embeddings = teacher(text["input_ids"], text["attention_mask"], mask)[0][0].float().cpu()
    return torch.stack([
        embeddings[[place for place, owner in enumerate(owners) if owner == number]].mean(dim=0)
        for number in range(len(words))
    ])  # fmt: skip


def word_hits(encoded: Sequence[Encoded], words: Sequence, embeddings: Sequence[torch.Tensor]) -> torch.Tensor:
    """For each utterance its words that count, those whose most similar frame is within their time, and chance.

    words: per utterance its words (attributes start, end in seconds, known); embeddings: per utterance
    [words, D]. Words whose time is not known are left out.
    Returns [utterances, 3] float64: number of words, hits, and the hits to expect of frames drawn at random.
    """
    rows = []
    for utterance, spoken, text in zip(encoded, words, embeddings):
        best = align(utterance.frames[None], text[None], temperature=0.0).unit[0]
        starts, ends = (torch.tensor([getattr(word, side) for word in spoken]).double() for side in ("start", "end"))
        inside = (utterance.centers >= starts[:, None]) & (utterance.centers < ends[:, None])
        counted = torch.tensor([word.known for word in spoken]) & inside.any(dim=1)
        hit = inside.gather(1, best[:, None])[:, 0]
        rows.append([counted.sum(), hit[counted].sum(), inside[counted].double().mean(dim=1).sum()])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)


def word_hit_rate(encoded: Sequence[Encoded], words: Sequence, embeddings: Sequence[torch.Tensor]) -> dict:
    """How often the frame most similar to a word is within the word's true time; arguments as for `word_hits`.

    Returns {"hit_rate", "chance", "words"}; chance: the hit rate of a frame drawn at random.
    """
    count, hits, chance = word_hits(encoded, words, embeddings).sum(dim=0).tolist()
    return {"hit_rate": hits / max(count, 1), "chance": chance / max(count, 1), "words": int(count)}


@torch.no_grad()
def unit_hit_rate(
    encoded: Sequence[Encoded], words: Sequence, embeddings: Sequence[torch.Tensor], objective: Objective
) -> dict:
    """How often the unit (frame or span) that an objective aligns with a word overlaps the word's true time.

    Arguments as for `word_hit_rate`; recorded priors are used if the objective uses priors.
    Returns {"hit_rate", "chance", "words"}; chance: the hit rate of a unit drawn at random.
    """
    hits, chance, count = 0.0, 0.0, 0
    for utterance, spoken, text in zip(encoded, words, embeddings):
        frames = len(utterance.frames)
        prior = None
        if objective.speech_prior:
            if utterance.prior is None:
                raise ValueError("encoded: the objective uses a speech prior; expected utterances encoded with_prior")
            prior = utterance.prior[None]
        spans, prior = objective.units(prior, torch.ones(1, frames, dtype=torch.bool), torch.tensor([len(text)]))
        start = torch.arange(frames) if spans is None else spans.start[0].long()
        end = start + 1 if spans is None else spans.end[0].long()
        best = align(
            utterance.frames[None], text[None], spans, speech_prior=prior, temperature=objective.temperature
        ).unit[0]
        half = float(utterance.centers[1] - utterance.centers[0]) / 2 if frames > 1 else 0.0
        there = end > start
        first, last = (utterance.centers[place.clamp(0, frames - 1)] for place in (start, end - 1))
        for word, unit in zip(spoken, best.tolist()):
            overlaps = there & (first - half < word.end) & (last + half > word.start)
            if not word.known or unit < 0 or not overlaps.any():
                continue
            hits += float(overlaps[unit])
            chance += float(overlaps[there].double().mean())
            count += 1
    return {"hit_rate": hits / max(count, 1), "chance": chance / max(count, 1), "words": count}
