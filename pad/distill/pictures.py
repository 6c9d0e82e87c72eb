"""Pictures of one utterance's alignment while a student trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations import TensorBoardCallback

from pad.align.utterance import look
from pad.step.collate import Collator
from pad.step.objective import Objective
from pad.step.teacher import Teacher


class AlignmentPictures(TrainerCallback):
    """Draws one utterance every so many steps: into tensorboard where Trainer logs to it, and as pictures/step-N.png.

    samples [T] at the student's rate, transcript: the utterance; folder: where `pictures` is made. The training
    goes on as if nothing had happened: random state, mode and gradients are as before.
    """

    def __init__(
        self, trainer, collator: Collator, teacher: Teacher, objective: Objective, samples: np.ndarray,
        transcript: str, every_steps: int, folder: Path,
    ):  # fmt: skip
        self.trainer, self.collator, self.teacher, self.objective = trainer, collator, teacher, objective
        self.samples, self.transcript = samples, transcript
        self.every_steps, self.folder = every_steps, folder

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every_steps or not state.is_world_process_zero:
            return
        from pad.align.picture import draw, save

        student = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
        devices = [args.device] if args.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.autocast(args.device.type, enabled=False):
            utterance = look(student, self.collator, self.teacher, self.objective, self.samples, self.transcript)
        figure = draw(utterance)
        save(figure, self.folder / "pictures" / f"step-{state.global_step}")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_figure("alignment", figure, state.global_step, close=False)
