"""The tasks: batches, the loss of a head on a batch, and the scores of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from pad.data import read_audio
from pad.evaluate.encoder import Encoder
from pad.evaluate.heads import SlotHead, UtteranceHead
from pad.evaluate.slots import Vocabulary, slot_type_f1, slot_value_cer, slots_of

PUBLISHED_STEPS = {"ic": 200_000, "er": 30_000, "sf": 200_000}
PUBLISHED_EVAL_EVERY = {"ic": 4000, "er": 1000, "sf": 2000}


class Split(NamedTuple):
    """Items by number, and their lengths, used to make batches of similar length for slot filling."""

    items: Dataset
    lengths: Sequence[float]


@dataclass(frozen=True)
class Task:
    """One head to train: its data, its loss and its scores.

    metric: the score used to choose, higher is better. build() returns a head with new weights, loss(head, items) a
    scalar, answers(head, items) the items of the list that `scores` takes for a whole split.
    """

    metric: str
    train: Split
    dev: Split
    test: Split
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, list], torch.Tensor]
    answers: Callable[[nn.Module, list], list]
    scores: Callable[[list], dict[str, float]]


class _Means(Dataset):
    def __init__(self, means: torch.Tensor, labels: torch.Tensor):
        self.means, self.labels = means, labels

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.means[number], self.labels[number]


def utterance_task(
    splits: Sequence[tuple[torch.Tensor, torch.Tensor]], classes: Sequence[int], device: torch.device
) -> Task:
    """Intent classification or emotion recognition: an utterance is correct if all its labels are.

    splits: train, dev and test, each of (means over frames [n, layers, D], labels [n, len(classes)] int64).
    The loss is the sum of the labels' cross-entropies.
    """
    layers, width = splits[0][0].shape[1:]

    def logits_and_labels(head: nn.Module, items: list) -> tuple[list[torch.Tensor], torch.Tensor]:
        means, labels = (torch.stack(column).to(device) for column in zip(*items))
        return head(means), labels

    def loss(head: nn.Module, items: list) -> torch.Tensor:
        logits, labels = logits_and_labels(head, items)
        losses = (functional.cross_entropy(each, labels[:, place]) for place, each in enumerate(logits))
        return sum(losses, torch.zeros((), device=device))

    def answers(head: nn.Module, items: list) -> list[bool]:
        logits, labels = logits_and_labels(head, items)
        best = torch.stack([each.argmax(dim=1) for each in logits], dim=1)
        return (best == labels).all(dim=1).tolist()

    train, dev, test = (Split(_Means(means, labels), [0.0] * len(means)) for means, labels in splits)
    return Task(
        "accuracy",
        train,
        dev,
        test,
        build=lambda: UtteranceHead(layers, width, classes).to(device),
        loss=loss,
        answers=answers,
        scores=lambda right: {"accuracy": sum(right) / len(right)},
    )


class Sentences(Dataset):
    """Sentences for slot filling: (waveform, tokens), or (states [layers, M, D], tokens) if states are given."""

    def __init__(self, examples: Sequence, sampling_rate: int, states: Sequence[torch.Tensor] | None = None):
        self.examples, self.sampling_rate, self.states = examples, sampling_rate, states

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> tuple:
        example = self.examples[number]
        if self.states is not None:
            return self.states[number], example.label
        return read_audio(example.audio, self.sampling_rate), example.label


def slot_task(encoder: Encoder, splits: Sequence[Split], slots: Sequence[str], hidden: int, spec_augment: bool) -> Task:
    """Slot filling: CTC over characters and tags; splits: train, dev and test, whose items are Sentences."""
    vocabulary, device = Vocabulary(slots), encoder.device

    def states_of(items: list) -> tuple[torch.Tensor, torch.Tensor]:
        first = [item[0] for item in items]
        if not isinstance(first[0], torch.Tensor):
            return encoder(first)
        rows = pad_sequence([states.transpose(0, 1) for states in first], batch_first=True)
        lengths = torch.tensor([states.shape[1] for states in first])
        return rows.transpose(1, 2).to(device).float(), lengths.to(device)

    def loss(head: nn.Module, items: list) -> torch.Tensor:
        states, lengths = states_of(items)
        labels = [torch.tensor(vocabulary.encode(item[1])) for item in items]
        return functional.ctc_loss(
            head(states, lengths).log_softmax(dim=-1).transpose(0, 1),
            torch.cat(labels).to(device),
            lengths,
            torch.tensor([len(label) for label in labels], device=device),
            zero_infinity=True,
        )

    def answers(head: nn.Module, items: list) -> list[tuple]:
        states, lengths = states_of(items)
        logits = head(states, lengths)
        return [
            (slots_of(vocabulary.decode(row[:length])), slots_of(item[1]))
            for row, length, item in zip(logits, lengths.tolist(), items)
        ]

    def scores(found: list[tuple]) -> dict[str, float]:
        hypotheses, references = zip(*found)
        return {
            "slot_type_f1": slot_type_f1(hypotheses, references),
            "slot_value_cer": slot_value_cer(hypotheses, references),
        }

    train, dev, test = splits
    return Task(
        "slot_type_f1",
        train,
        dev,
        test,
        build=lambda: SlotHead(encoder.layers, encoder.width, len(vocabulary), hidden, spec_augment).to(device),
        loss=loss,
        answers=answers,
        scores=scores,
    )
