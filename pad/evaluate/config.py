"""Settings of `pad evaluate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pad.errors import UserError
from pad.settings import LARGEST_SEED, MOST_WORKERS, Settings

TASKS = ("ic", "er", "sf")
_WIDEST = 2**16
# What a resumed run may change: nothing that affects what is learned.
FREE_ON_RESUME = ("output", "device", "workers", "save_every", "resume")


@dataclass
class EvaluateConfig(Settings):
    """Evaluate a frozen speech encoder as SUPERB does: intent classification, emotion recognition, slot filling."""

    paths = ("student", "baseline", "output", "ic", "er", "sf")

    student: str
    """speech encoder to evaluate: a transformers checkpoint folder or hub name"""
    output: str
    """new folder for results.json and the state from which a run can resume"""
    baseline: str | None = None
    """second encoder to evaluate in the same way, such as the student before distillation"""

    pad_to_max_length: bool = False
    """Whisper: fill every utterance up to 30 s with silence, as it was trained; slower"""

    ic: str | None = None
    """folder of Fluent Speech Commands, for intent classification; None: skip this task"""
    er: str | None = None
    """folder of IEMOCAP, for emotion recognition; None: skip this task"""
    sf: str | None = None
    """folder of Audio SNIPS in s3prl's layout, for slot filling; None: skip this task"""

    lr_sweep: tuple[float, ...] = (1e-4,)
    """learning rates of Adam to try; the best on the dev split is reported"""
    max_steps: int = 0
    """optimizer steps for each head; 0: the published 200000 for ic, 30000 for er, 200000 for sf"""
    eval_every: int = 0
    """steps between evaluations on the dev split; 0: the published 4000 for ic, 1000 for er, 2000 for sf"""
    save_every: int = 500
    """steps between saved states"""
    batch_size: int = 32
    """utterances per batch"""
    max_grad_norm: float = 1.0
    """clip gradients to this norm"""

    slot_width: int = 1024
    """slot filling: width of the projection and of each LSTM direction"""
    spec_augment: bool = True
    """slot filling: train with SpecAugment (masks over time and features)"""
    cache_features: bool = False
    """slot filling: keep all hidden states in memory as float16, 1 MB per second of audio for a base model"""

    device: Literal["auto", "cpu"] = "auto"
    """auto: use a GPU if there is one"""
    workers: int = 0
    """worker processes that read audio; 0: read in the training process"""
    seed: int = 0
    """random seed for initial weights, data order, dropout, masks and the dev split of IEMOCAP"""
    resume: bool = False
    """continue from the last saved state in the output folder, or start if there is none"""

    def check(self) -> None:
        """Raise UserError that names a setting whose value makes no sense."""
        super().check()
        self.expect_from(("save_every", "batch_size"), 1)
        self.expect_from(("slot_width",), 1, _WIDEST)
        self.expect_from(("max_steps", "eval_every"), 0)
        self.expect_from(("workers",), 0, MOST_WORKERS)
        self.expect_from(("seed",), 0, LARGEST_SEED)
        self.expect_positive(("max_grad_norm",))
        self.lr_sweep = tuple(self.lr_sweep)
        usable = all(rate > 0 and math.isfinite(rate) for rate in self.lr_sweep)
        distinct = len(set(self.lr_sweep)) == len(self.lr_sweep)
        self.expect("lr_sweep", bool(self.lr_sweep) and usable and distinct, "distinct positive numbers")
        if not self.tasks:
            raise UserError("ic, er, sf: none is given; expected the folder of at least one corpus")

    @property
    def tasks(self) -> list[str]:
        """The tasks whose corpus is given."""
        return [task for task in TASKS if getattr(self, task) is not None]
