"""Checkpoints that are whole, a student saved whole, and a run that stops when it is told to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import torch
from torch import distributed
from transformers import TrainerCallback

from pad.errors import UserError


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end; its state is the last file written."""
    found = []
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and _state_step(path / "trainer_state.json") == int(match[1]):
            found.append((int(match[1]), path))
    return max(found)[1] if found else None


def _state_step(path: Path) -> int | None:
    try:
        return json.loads(path.read_text())["global_step"]
    except (OSError, ValueError, KeyError):
        return None


def check_output(output: Path, resume: bool) -> str | None:
    """The checkpoint to go on from, None for a fresh run; raises UserError if the folder does not fit."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {output} is a file, expected a folder")
    if resume:
        last = last_whole_checkpoint(output / "checkpoints")
        if last is None:
            raise UserError(f"resume: no checkpoint in {output / 'checkpoints'}")
        return str(last)
    # Of several processes the first makes the folder, perhaps before the others look.
    if int(os.environ.get("RANK", 0)) == 0 and output.exists() and any(output.iterdir()):
        raise UserError(f"output: the folder {output} is not empty; choose another, or --resume to go on there")
    return None


def save_student(student, extractor, folder: Path, state_dict: dict | None = None) -> Path:
    """Save a student and its feature extractor; the folder appears whole, under its name, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        student.save_pretrained(partial, state_dict=state_dict)
        extractor.save_pretrained(partial)
        os.chmod(partial, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


class StopOnSignal(TrainerCallback):
    """At SIGTERM or the first Ctrl-C: finish the step, save a checkpoint, stop. The second Ctrl-C stops at once."""

    def __init__(self):
        self.number = 0
        self._before: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number, frame):
        self.number = number
        signal.signal(number, self._before[number])

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            # All processes save at the same step, whichever of them were told.
            told = torch.tensor(self.number, device=args.device)
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
            self.number = int(told)
        if self.number:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
