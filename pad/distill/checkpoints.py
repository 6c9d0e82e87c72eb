"""Checks of the output folder, complete checkpoints, and stopping on a signal."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import distributed
from transformers import TrainerCallback

from pad.distill.config import FREE_ON_RESUME, DistillConfig
from pad.errors import UserError
from pad.progress import first_process, say
from pad.settings import SETTINGS_FILE, check_same


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; its trainer state is the last file written."""
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


def check_output(config: DistillConfig) -> str | None:
    """The checkpoint to resume from, None to start from step 0; raises UserError if the folder cannot be used."""
    output = Path(config.output)
    # Of several processes, the first makes the folder, perhaps before the others check it.
    if first_process():
        _check_folder(output, config.resume)
    if not config.resume:
        return None
    if (output / SETTINGS_FILE).is_file():
        check_same(config, output / SETTINGS_FILE, FREE_ON_RESUME)
    last = last_whole_checkpoint(output / "checkpoints")
    if last is None:
        say(f"resume: no checkpoint in {output / 'checkpoints'} yet; starting from step 0")
        return None
    return str(last)


def _check_folder(output: Path, resume: bool) -> None:
    """Raise UserError unless a run can write here: a new one, or the one that is resumed."""
    try:
        if output.exists() and not output.is_dir():
            raise UserError(f"output: {output} is a file, expected a folder")
        if output.exists() and any(output.iterdir()):
            if not resume:
                raise UserError(
                    f"output: the folder {output} is not empty; choose another, or --resume to continue there"
                )
            if not (output / SETTINGS_FILE).is_file():
                raise UserError(f"resume: {output} holds no {SETTINGS_FILE}; expected a run's folder, or a new one")
        with tempfile.TemporaryDirectory(prefix=".pad-", dir=_nearest(output)):
            pass
    except OSError as error:
        raise UserError(f"output: cannot write to {output}: {error.strerror or error}; expected a folder that can be "
                        "made and written") from error  # fmt: skip


@contextmanager
def saving_to(output: Path) -> Iterator[None]:
    """Turn the different errors that a full disk causes into one that names the folder."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_of_full_disk(error):
            raise
        free = shutil.disk_usage(_nearest(output)).free / 2**20
        reason = f"no space is left on its disk ({free:.0f} MiB free)"
        raise OSError(f"output: cannot write to {output}: {reason}") from error


def _is_of_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, SafetensorError):
        return "No space left" in str(error) or "quota" in str(error)
    # torch.save does not say why it could not write its file.
    return "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error)


def _nearest(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


class StopOnSignal(TrainerCallback):
    """On SIGTERM or the first Ctrl-C, finish the step, save a checkpoint and stop. The second Ctrl-C stops at once."""

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
            # All processes save at the same step, whichever of them got the signal.
            told = torch.tensor(self.number, device=args.device)
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
            self.number = int(told)
        if self.number:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
