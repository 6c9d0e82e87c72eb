"""Trains the heads of `pad evaluate` beside those of s3prl's SUPERB, step by step, and compares their metrics.

    pip download --no-deps --no-binary :all: s3prl==0.4.18 && tar xzf s3prl-0.4.18.tar.gz
    pip install editdistance pandas
    python tests/compare_s3prl.py s3prl-0.4.18

Both get the same hidden states, first weights, batches and targets, without dropout and SpecAugment, which are random.
Exits with 1 if a loss or a score differs by more than rounding where nothing is known to differ.
"""

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from torch import nn

from pad.evaluate import slots
from pad.evaluate.heads import SlotHead, UtteranceHead
from pad.evaluate.tasks import Split, slot_task, utterance_task

LAYERS, WIDTH, UTTERANCES, BATCH = 4, 32, 96, 16
NAMES = ("artist", "city", "date")
TOLERANCE = 1e-4
EARLY = 20  # steps, after which rounding of the LSTM has grown to more than that


def utterances(seed: int, classes: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states [layers, M, D] of different lengths, which tell their labels [n, len(classes)]."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randint(count, (UTTERANCES,), generator=source) for count in classes], dim=1)
    directions = [torch.randn(count, LAYERS, 1, WIDTH, generator=source) for count in classes]
    lengths = torch.randint(20, 60, (UTTERANCES,), generator=source).tolist()
    states = [
        torch.randn(LAYERS, frames, WIDTH, generator=source)
        + sum(direction[label] for direction, label in zip(directions, own))
        for frames, own in zip(lengths, labels)
    ]
    return states, labels


class Theirs(nn.Module):
    """s3prl's featurizer, projector and model under its runner's rule, with an expert's `forward`."""

    def __init__(self, expert_forward, projector: nn.Linear, model: nn.Module, **attributes):
        super().__init__()
        from s3prl.upstream.interfaces import Featurizer

        self.weights, self.layer_num, self.normalize = nn.Parameter(torch.zeros(LAYERS)), LAYERS, False
        self.projector, self.model = projector, model
        self.weighted_sum = lambda states: Featurizer._weighted_sum(self, list(states))
        self.expert_forward = expert_forward
        self.attributes = attributes

    def expert(self, states: list[torch.Tensor], labels: list, records: dict) -> torch.Tensor:
        features = [self.weighted_sum(one.contiguous()) for one in states]
        own = SimpleNamespace(projector=self.projector, model=self.model, **self.attributes)
        return self.expert_forward(own, "train", features, labels, [""] * len(states), records)


def side_by_side(ours: nn.Module, our_loss, theirs: Theirs, their_items, steps: int) -> dict[str, float]:
    """Train both with Adam and clipped gradients: the first and last loss, and the largest differences of a step's."""
    optimizers = [torch.optim.Adam(model.parameters(), lr=3e-3) for model in (ours, theirs)]
    source, found = random.Random(0), []
    for _ in range(steps):
        batch = source.sample(range(UTTERANCES), BATCH)
        losses = our_loss(ours, batch), theirs.expert(*their_items(batch), defaultdict(list))
        for model, optimizer, loss in zip((ours, theirs), optimizers, losses):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        found.append([loss.item() for loss in losses])
    differences = [abs(one - other) for one, other in found]
    return {
        "first loss": found[0][0], "last loss": found[-1][0],
        "largest difference of losses": max(differences), "in the first steps": max(differences[:EARLY]),
    }  # fmt: skip


def utterance_level(classes: tuple[int, ...]) -> dict[str, float]:
    """Intent classification, or emotion recognition with one label: losses and accuracies of both."""
    from s3prl.downstream.emotion.expert import DownstreamExpert as Emotion
    from s3prl.downstream.fluent_commands.expert import DownstreamExpert as Intent
    from s3prl.downstream.model import UtteranceLevel

    states, labels = utterances(len(classes), classes)
    means = torch.stack([one.mean(dim=1) for one in states])
    task = utterance_task([(means, labels)] * 3, classes, torch.device("cpu"))
    torch.manual_seed(1)
    ours: UtteranceHead = task.build()
    model = UtteranceLevel(256, sum(classes), pooling="MeanPooling", post_net={"select": "FrameLevel"})
    projector = nn.Linear(WIDTH, 256)
    projector.load_state_dict(ours.projection.state_dict())
    linear = model.post_net.linear
    linear.weight.data = torch.cat([head.weight.data for head in ours.classifiers])
    linear.bias.data = torch.cat([head.bias.data for head in ours.classifiers])
    names = {slot: {number: str(number) for number in range(9)} for slot in ("action", "object", "location")}
    theirs = Theirs(
        (Emotion if len(classes) == 1 else Intent).forward, projector, model, objective=nn.CrossEntropyLoss(),
        values_per_slot=classes, Sy_intent=names, test_dataset=SimpleNamespace(idx2emotion=names["action"]),
    )  # fmt: skip
    single = len(classes) == 1

    def their_items(batch: list[int]) -> tuple:
        return [states[n] for n in batch], [labels[n, 0].item() if single else labels[n].tolist() for n in batch]

    losses = side_by_side(
        ours, lambda head, batch: task.loss(head, [task.train.items[n] for n in batch]), theirs, their_items, 120
    )
    records: dict = defaultdict(list)
    theirs.expert(*their_items(list(range(UTTERANCES))), records)
    accuracy = task.scores(task.answers(ours, [task.train.items[n] for n in range(UTTERANCES)]))["accuracy"]
    return losses | {"score": accuracy, "their score": sum(records["acc"]) / len(records["acc"])}


def sentence(source: random.Random) -> list[str]:
    """Characters with one or two slots."""
    tokens: list[str] = []
    for _ in range(source.randint(1, 2)):
        name = source.choice(NAMES)
        value = "".join(source.choice("ABCDE") for _ in range(source.randint(1, 3)))
        tokens += [*source.choice(("AB", "CD")), " ", f"B-{name}", *value, f"E-{name}", " "]
    return tokens[:-1]


def slot_level() -> dict[str, float]:
    """Slot filling: losses of both, and the F1 of what both decode."""
    from s3prl.downstream.asr.model import RNNs
    from s3prl.downstream.ctc.expert import DownstreamExpert
    from s3prl.downstream.ctc.metric import slot_type_f1
    from s3prl.downstream.ctc.text import CharacterTextSlotEncoder

    source, hidden = random.Random(2), 48
    vocabulary = slots.Vocabulary(NAMES)
    tags = [f"{side}-{name}" for name in NAMES for side in "BE"]
    tokenizer = CharacterTextSlotEncoder(list(slots.CHARACTERS), tags)
    # Their numbers: <pad>, <eos>, <unk>, characters, tags; ours: blank, unknown, characters, tags.
    to_theirs = [0, 2, *range(3, 3 + len(slots.CHARACTERS) + len(tags))]
    letters = torch.randn(len(vocabulary), WIDTH, generator=torch.Generator().manual_seed(3))
    labels = [tuple(sentence(source)) for _ in range(UTTERANCES)]
    states = []
    for label in labels:
        spoken = letters[vocabulary.encode(label)].repeat_interleave(3, dim=0)
        states.append(torch.stack([spoken + layer for layer in range(LAYERS)]))
    items = list(zip(states, labels))
    encoder = SimpleNamespace(device=torch.device("cpu"), layers=LAYERS, width=WIDTH)
    task = slot_task(encoder, [Split(items, [0.0] * len(items))] * 3, NAMES, hidden, spec_augment=False)
    torch.manual_seed(1)
    ours: SlotHead = task.build().eval()
    model = RNNs(
        hidden, tokenizer.vocab_size, 320, module="LSTM", bidirection=True, dim=[hidden] * 2, dropout=[0.2] * 2,
        layer_norm=[False] * 2, proj=[False] * 2, sample_rate=[1, 1], sample_style="concat",
    ).eval()  # fmt: skip
    projector = nn.Linear(WIDTH, hidden)
    projector.load_state_dict(ours.projection.state_dict())
    for number, rnn in enumerate(model.rnns):
        for name, parameter in rnn.layer.named_parameters():
            parameter.data = getattr(ours.recurrent, name.replace("_l0", f"_l{number}")).data.clone()
    model.linear.weight.data.zero_()
    model.linear.bias.data.fill_(-1e4)  # <eos>, which only theirs has, is never chosen
    model.linear.weight.data[to_theirs] = ours.output.weight.data
    model.linear.bias.data[to_theirs] = ours.output.bias.data
    theirs = Theirs(
        DownstreamExpert.forward, projector, model, tokenizer=tokenizer,
        objective=nn.CTCLoss(blank=tokenizer.pad_idx, zero_infinity=True),
    )  # fmt: skip

    def their_items(batch: list[int]) -> tuple:
        return [states[n] for n in batch], [[to_theirs[t] for t in vocabulary.encode(labels[n])] for n in batch]

    losses = side_by_side(
        ours, lambda head, batch: task.loss(head, [items[n] for n in batch]), theirs, their_items, 400
    )
    records: dict = defaultdict(list)
    theirs.expert(*their_items(list(range(UTTERANCES))), records)
    with torch.no_grad():
        scores = task.scores(task.answers(ours, items))
    their_f1 = slot_type_f1(records["hypothesis"], records["groundtruth"])
    return losses | {"score": scores["slot_type_f1"], "their score": their_f1}


def metrics(damage: float, count: int = 2000) -> dict[str, float]:
    """F1 and CER of both on sentences of which a share of the tokens is lost, doubled or changed."""
    from s3prl.downstream.ctc.metric import slot_type_f1, slot_value_cer

    source = random.Random(4)
    alphabet = [*"ABCDE ", *(f"{side}-{name}" for name in NAMES for side in "BE")]
    references, heard = [], []
    for _ in range(count):
        tokens = sentence(source)
        references.append(tokens)
        heard.append([
            other
            for token in tokens
            for other in (source.choice([[], [token] * 2, [source.choice(alphabet)]]) if source.random() < damage
                          else [token])
        ])  # fmt: skip

    def as_text(tokens: list[str]) -> str:
        spaced = {"B": lambda token: token + " ", "E": lambda token: " " + token}
        return "".join(spaced[token[0]](token) if len(token) > 1 else token for token in tokens)

    ours = [[slots.slots_of(tokens) for tokens in part] for part in (heard, references)]
    text = [[as_text(tokens) for tokens in part] for part in (heard, references)]
    alike = sum(
        slots.slot_type_f1([one], [true]) == slot_type_f1([spoken], [meant])
        for one, true, spoken, meant in zip(*ours, *text)
    )
    return {
        "F1": slots.slot_type_f1(*ours), "theirs": slot_type_f1(*text), "same F1": alike / count,
        "CER": slots.slot_value_cer(*ours), "their CER": slot_value_cer(*text),
    }  # fmt: skip


def frames() -> dict[str, float]:
    """How often s3prl takes another number of frames for a waveform than wav2vec 2.0 makes of it."""
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    more = []
    for samples in range(16_000, 32_000):
        made = samples
        for kernel, stride in zip(kernels, strides):
            made = (made - kernel) // stride + 1
        more.append(round(samples / 320) - made)
    return {"lengths": len(more), "one frame more": more.count(1) / len(more), "the same": more.count(0) / len(more)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of s3prl 0.4.18's source")
    sys.path.insert(0, str(parser.parse_args().source.resolve()))
    for name in ("torchaudio", "torchaudio.transforms"):  # which read files, and none is read here
        sys.modules.setdefault(name, MagicMock())
    failed = False
    for title, found in (
        ("intent classification", utterance_level((6, 4, 3))),
        ("emotion recognition", utterance_level((4,))),
        ("slot filling", slot_level()),
    ):
        failed |= found["in the first steps"] > TOLERANCE or found["last loss"] > 0.1 * found["first loss"]
        failed |= abs(found["score"] - found["their score"]) > 1 / UTTERANCES
        print(f"{title}: {', '.join(f'{name} {value:.6g}' for name, value in found.items())}")
    for damage in (0.0, 0.1, 0.3):
        found = metrics(damage)
        failed |= damage == 0 and (found["F1"], found["theirs"], found["CER"]) != (1, 1, 0)
        print(f"metrics, {damage:.0%} of the tokens damaged: {', '.join(f'{n} {v:.6g}' for n, v in found.items())}")
    print(f"frames: {', '.join(f'{name} {value:.6g}' for name, value in frames().items())}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
