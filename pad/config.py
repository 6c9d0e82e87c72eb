"""Settings of a distillation run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pad.errors import UserError


@dataclass
class DistillConfig:
    """What `pad distill` does. Models and objectives are the paper's, the schedule is ours."""

    student: str
    teacher: str
    data: str
    output: str

    preset: str = "pad-slocal"
    temperature: float | None = None  # None: the preset's
    teacher_layer: int = -1  # hidden state that gives the token embeddings
    center_teacher: bool = False  # subtract the mean token embedding of the transcripts
    cache_teacher: bool = False  # keep the teacher's outputs in memory from the first epoch on

    max_steps: int = 0  # 0: as many as `epochs` takes
    epochs: float = 10.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 5e-5
    warmup_steps: int = 500
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_seconds: float = 20.0  # longer utterances are left out
    freeze_feature_encoder: bool = False  # keep the convolutions as they are

    precision: str = "float32"  # or bfloat16, float16: autocast
    device: str = "auto"  # or cpu
    workers: int = 0  # processes that read audio
    seed: int = 0
    log_every: int = 10  # steps
    save_every: int = 500  # steps
    keep_checkpoints: int = 2
    resume: bool = False

    def check(self) -> None:
        """Raise UserError for a value that makes no sense, by its name."""
        for name in ("batch_size", "gradient_accumulation", "log_every", "save_every", "keep_checkpoints"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "warmup_steps", "workers", "weight_decay", "seed"):
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "max_grad_norm", "max_seconds"):
            self._expect(name, getattr(self, name) > 0, "a positive number")
        self._expect("epochs", self.max_steps > 0 or self.epochs > 0, "a positive number, or max_steps")
        self._expect("temperature", self.temperature is None or self.temperature >= 0, "0 or more")
        self._expect("precision", self.precision in ("float32", "bfloat16", "float16"),
                     "float32, bfloat16 or float16")  # fmt: skip
        self._expect("device", self.device in ("auto", "cpu"), "auto or cpu")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


DEFAULTS = {field.name: field.default for field in fields(DistillConfig)}
