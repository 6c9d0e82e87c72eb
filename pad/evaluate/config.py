"""Settings of an evaluation as in SUPERB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pad.errors import UserError
from pad.settings import Settings

TASKS = ("ic", "er", "sf")


@dataclass
class EvaluateConfig(Settings):
    """Judge a frozen speech encoder as SUPERB does, on intents, emotions and slots."""

    student: str
    """speech encoder to judge: a transformers checkpoint folder or hub name"""
    output: str
    """new folder for results.json and the state to resume from"""
    baseline: str | None = None
    """second encoder that is judged the same way, such as the student before distillation"""

    ic: str | None = None
    """folder of Fluent Speech Commands, for intent classification; left out if not given"""
    er: str | None = None
    """folder of IEMOCAP, for emotion recognition; left out if not given"""
    sf: str | None = None
    """folder of Audio SNIPS as s3prl lays it out, for slot filling; left out if not given"""

    lr_sweep: tuple[float, ...] = (1e-4,)
    """learning rates of Adam; each is tried, the best on dev counts"""
    max_steps: int = 0
    """optimizer steps of each head; 0: the published 200000 for ic, 30000 for er, 200000 for sf"""
    eval_every: int = 0
    """steps between evaluations on dev; 0: the published 4000 for ic, 1000 for er, 2000 for sf"""
    save_every: int = 500
    """steps between saved states"""
    batch_size: int = 32
    """utterances in a batch"""
    max_grad_norm: float = 1.0
    """norm to which gradients are clipped"""

    slot_width: int = 1024
    """width of the projection and of each direction of the LSTM for slot filling"""
    spec_augment: bool = True
    """train slot filling with masks over time and features"""
    cache_features: bool = False
    """for slot filling, keep all hidden states in memory as float16, 1 MB a second for a base model"""

    device: Literal["auto", "cpu"] = "auto"
    """auto: a GPU where there is one"""
    workers: int = 0
    """processes that read audio, 0: the training process"""
    seed: int = 0
    """of the heads' first weights, the order of the data, dropout, masks, and the dev split of IEMOCAP"""
    resume: bool = False
    """go on from the last saved state in output"""

    def check(self) -> None:
        """Raise UserError for a value that makes no sense, by its name."""
        for name in ("save_every", "batch_size", "slot_width"):
            self.expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "eval_every", "workers", "seed"):
            self.expect(name, getattr(self, name) >= 0, "0 or more")
        self.expect("max_grad_norm", self.max_grad_norm > 0, "a positive number")
        self.expect("device", self.device in ("auto", "cpu"), "auto or cpu")
        self.lr_sweep = tuple(self.lr_sweep)
        usable = all(rate > 0 and math.isfinite(rate) for rate in self.lr_sweep)
        distinct = len(set(self.lr_sweep)) == len(self.lr_sweep)
        self.expect("lr_sweep", self.lr_sweep and usable and distinct, "distinct positive numbers")
        if not self.tasks:
            raise UserError("ic, er, sf: none is given; expected the folder of at least one corpus")

    @property
    def tasks(self) -> list[str]:
        """The tasks whose corpus is given."""
        return [task for task in TASKS if getattr(self, task) is not None]
