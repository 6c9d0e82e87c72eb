"""What a checkpoint knows of the data: which they were, among how many processes, and which could not be read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import distributed

from pad.digests import digest_of_items
from pad.errors import UserError
from pad.files import write_json
from pad.step.collate import SpeechTextDataset

DATA = "data.json"


def save_data_state(folder: Path, dataset: SpeechTextDataset, processes: int, unreadable: list[int]) -> None:
    """Write it to a checkpoint."""
    state = {"utterances": len(dataset), "digest": _digest(dataset), "processes": processes, "unreadable": unreadable}
    write_json(folder / DATA, state)


def load_data_state(folder: Path, dataset: SpeechTextDataset, processes: int) -> None:
    """Leave out what the run of a checkpoint could not read; UserError where its data or processes were others."""
    state = json.loads((folder / DATA).read_text(encoding="utf-8"))
    if state["digest"] != _digest(dataset):
        raise UserError(
            f"resume: expected the data that the run began with, {state['utterances']} utterances, got {len(dataset)}"
            + (" of other transcripts, durations, file sizes or order" if state["utterances"] == len(dataset) else "")
        )
    if state["processes"] != processes:
        raise UserError(
            f"resume: expected as many processes as the run had, {state['processes']}, got {processes}: they share out "
            "the batches"
        )
    dataset.leave_out(state["unreadable"])


def unreadable_anywhere(dataset: SpeechTextDataset, device: torch.device) -> list[int]:
    """Numbers of the utterances that one of the processes could not read; all of them call this together."""
    flags = torch.zeros(len(dataset), dtype=torch.uint8, device=device)
    flags[dataset.unreadable()] = 1
    if distributed.is_initialized():
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return flags.nonzero().flatten().tolist()


def _digest(dataset: SpeechTextDataset) -> str:
    # Not the paths: a corpus may move.
    items = [(item.duration, item.size, text) for item, text in zip(dataset.utterances, dataset.transcripts)]
    return digest_of_items(items)
