"""Hidden states of whole corpora: means over frames, kept on disk, or all states, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pad.evaluate.corpora import Example
from pad.evaluate.encoder import Encoder
from pad.evaluate.states import load_state, save_state
from pad.evaluate.tasks import Sentences

_PART = 512


def _encoded(
    encoder: Encoder, examples: Sequence[Example], seconds: Sequence[float], batch_size: int, workers: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """(numbers, states, lengths) of each batch, the shortest utterances first."""
    order = sorted(range(len(examples)), key=lambda number: seconds[number])
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    sentences = Sentences(examples, encoder.sampling_rate)
    loader = DataLoader(sentences, batch_sampler=batches, num_workers=workers, collate_fn=list)
    for numbers, items in zip(batches, loader):
        yield numbers, *encoder([waveform for waveform, _ in items])


def means(
    encoder: Encoder,
    examples: Sequence[Example],
    seconds: Sequence[float],
    folder: Path,
    title: str,
    batch_size: int = 32,
    workers: int = 0,
) -> torch.Tensor:
    """[n, layers, D] float32 on the CPU: each hidden state's mean over the real frames.

    seconds: of each example's audio. Each part is kept in `folder` once it is done, for a run that is
    stopped.
    """
    parts = []
    with tqdm(total=len(examples), desc=title, unit="utterance") as bar:
        for first in range(0, len(examples), _PART):
            part = examples[first : first + _PART]
            names = [str(example.audio) for example in part]
            path = folder / f"part-{first // _PART:05d}.pt"
            state = load_state(path)
            if state is None or state["audio"] != names:
                found = torch.empty(len(part), encoder.layers, encoder.width)
                spans = seconds[first : first + _PART]
                for numbers, states, lengths in _encoded(encoder, part, spans, batch_size, workers):
                    found[numbers] = (states.sum(dim=2) / lengths[:, None, None]).cpu()
                    bar.update(len(numbers))
                state = {"audio": names, "means": found}
                save_state(state, path)
            else:
                bar.update(len(part))
            parts.append(state["means"])
    return torch.cat(parts)


def all_states(
    encoder: Encoder,
    examples: Sequence[Example],
    seconds: Sequence[float],
    title: str,
    batch_size: int = 32,
    workers: int = 0,
) -> list[torch.Tensor]:
    """For each example the states of its real frames [layers, M, D], float16 on the CPU."""
    kept: list = [None] * len(examples)
    with tqdm(total=len(examples), desc=title, unit="utterance") as bar:
        for numbers, states, lengths in _encoded(encoder, examples, seconds, batch_size, workers):
            for number, row, length in zip(numbers, states, lengths.tolist()):
                kept[number] = row[:, :length].half().cpu()
            bar.update(len(numbers))
    return kept
