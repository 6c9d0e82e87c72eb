"""Pictures of one utterance's alignment during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations import TensorBoardCallback

from pad.align.utterance import align_utterance
from pad.step.collate import Collator
from pad.step.objective import Objective
from pad.step.teacher import Teacher


class AlignmentPictures(TrainerCallback):
    """Draws one utterance every few steps: to step-N.png and .svg, and to tensorboard if Trainer logs there.

    samples [T] at the student's rate, transcript: the utterance; folder: where the pictures are saved. Training is not
    affected: random state, mode and gradients are left as they were.
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
            utterance = align_utterance(
                student, self.collator, self.teacher, self.objective, self.samples, self.transcript
            )
        figure = draw(utterance)
        save(figure, self.folder / f"step-{state.global_step}")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_figure("alignment", figure, state.global_step, close=False)
