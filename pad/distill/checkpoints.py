"""Complete checkpoints, a full disk, and stopping on a signal."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import distributed
from transformers import TrainerCallback

from pad.distill.manifest import damage, numbered, sealed
from pad.errors import UserError
from pad.files import nearest
from pad.progress import say
from pad.signals import NotedSignals

# In errors of safetensors, torch.save and libsndfile; the last three do not say why nothing could be written.
_REASONS_OF_FULL_DISK = (
    "No space left", "quota", "File too large", "PytorchStreamWriter failed", "unexpected pos", "System error."
)  # fmt: skip


def last_whole_checkpoint(folder: Path, tell=lambda line: None) -> Path | None:
    """The newest checkpoint of a run that is as it was saved; tell: called with a line on each newer one."""
    for _, path in reversed(numbered(folder)):
        reason = damage(path)
        if reason is None:
            return path
        tell(f"resume: the checkpoint {path} is not whole: {reason}; it is passed over")
    return None


def after_divergence(folder: Path) -> str:
    """What is left of a run that diverged, for its message."""
    last = last_whole_checkpoint(folder)
    left = "no checkpoint was saved before" if last is None else f"the last whole checkpoint is {last}"
    return f"{left}; a smaller learning rate may help"


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The last whole checkpoint of a run that is resumed; None to start from step 0, as there is none.

    Raises UserError where there are some, but all are damaged: the run would remove them.
    """
    last = last_whole_checkpoint(folder, say)
    if last is not None:
        return last
    damaged = sealed(folder)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(f"resume: no checkpoint in {folder} is whole; move {names} away to start again from step 0")
    say(f"resume: no checkpoint in {folder} yet; starting from step 0")
    return None


@contextmanager
def saving_to(output: Path) -> Iterator[None]:
    """Turn the different errors that a full disk causes into one that names the folder."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_of_full_disk(error):
            raise
        free = shutil.disk_usage(nearest(output)).free / 2**20
        reason = f"no space is left on its disk ({free:.0f} MiB free)"
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY:
            reason += f", or a file is larger than the limit of {limit} bytes (ulimit -f)"
        raise OSError(f"output: cannot write to {output}: {reason}") from error


def _is_of_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(reason in str(error) for reason in _REASONS_OF_FULL_DISK)


class StopOnSignal(NotedSignals, TrainerCallback):
    """On a signal that asks for an end, finish the step, save a checkpoint and stop."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            # All processes save at the same step, whichever of them got the signal.
            told = torch.tensor(self.number, device=args.device)
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
            self.number = int(told)
        if self.number:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
