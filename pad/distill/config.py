"""Settings of a distillation run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from pad.settings import LARGEST, LARGEST_SEED, MOST_WORKERS, Settings
from pad.step.settings import ObjectiveSettings

# What a resumed run may change: nothing that affects what is learned, but for the rounding of the teacher's cache.
FREE_ON_RESUME = (
    "output", "teacher_cache", "download", "device", "workers", "log_every", "report_to", "pictures_every",
    "save_every", "keep_checkpoints", "resume",
)  # fmt: skip


@dataclass
class _Required(Settings):
    """What has no default: in a class of its own, so that the help shows it first."""

    student: str
    """speech encoder such as wav2vec 2.0, HuBERT, WavLM or Whisper: a transformers checkpoint folder or hub name"""
    teacher: str
    """text encoder of the same width, such as BERT: a transformers checkpoint folder or hub name"""
    data: str
    """transcribed speech: a folder, a manifest (.tsv, .jsonl), or a corpus by its name (docs/training.md)"""
    output: str
    """new folder for checkpoints, settings and the distilled student"""


@dataclass
class DistillConfig(ObjectiveSettings, _Required):
    """Distill a frozen text encoder into a speech encoder on transcribed speech."""

    paths = ("student", "teacher", "data", "output", "teacher_cache")

    teacher_layer: int = -1
    """hidden state of the teacher to use as token embeddings; -1: the last"""
    center_teacher: bool = False
    """subtract the mean token embedding of all transcripts from the teacher's embeddings"""
    lowercase: bool = False
    """give the teacher the transcripts in lower case: for a cased teacher and transcripts in capital letters"""
    teacher_cache: str = ""
    """cache the teacher's outputs: 'memory' (not a GPU's), or a folder that later runs can reuse; empty: no cache"""
    linear_map: bool = False
    """if the widths differ: also train a linear map from the teacher's width to the student's"""
    pad_to_max_length: bool = False
    """Whisper: fill every utterance up to 30 s with silence, as it was trained; slower"""

    on_error: Literal["raise", "skip"] = "raise"
    """how to handle a bad sample: raise stops the run, skip leaves it out and counts it"""
    download: bool = False
    """download the corpus if it is missing (librispeech:, librilight:)"""
    max_seconds: float = 20.0
    """leave out utterances longer than this"""

    max_steps: int = 0
    """optimizer steps; 0: train for the given number of epochs"""
    epochs: float = 10.0
    """passes over the data"""
    batch_size: int = 16
    """utterances per batch, in each process"""
    gradient_accumulation: int = 1
    """batches per optimizer step"""
    learning_rate: float = 5e-5
    """peak learning rate of AdamW"""
    warmup_steps: float = 0.1
    """steps of linear warm-up before the linear decay; below 1: a fraction of all steps"""
    weight_decay: float = 0.0
    """AdamW weight decay"""
    max_grad_norm: float = 1.0
    """clip gradients to this norm"""
    freeze_feature_encoder: bool = False
    """do not train the student's convolutional feature encoder"""
    gradient_checkpointing: bool = False
    """recompute the student's layers in the backward pass: less memory, more time"""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """float32, or mixed precision (autocast) with one of the others"""
    device: Literal["auto", "cpu"] = "auto"
    """auto: use a GPU if there is one"""
    workers: int = 0
    """worker processes that read audio; 0: read in the training process"""
    seed: int = 0
    """random seed for the data order and dropout"""
    log_every: int = 10
    """steps between log entries"""
    report_to: str = "none"
    """also log to this tracker, by its name in transformers: tensorboard, wandb, ..."""
    pictures_every: int = 0
    """steps between pictures of how one utterance aligns; 0: no pictures"""
    save_every: int = 500
    """steps between checkpoints"""
    keep_checkpoints: int = 2
    """number of checkpoints to keep"""
    resume: bool = False
    """continue from the last complete checkpoint in the output folder, or start if there is none"""

    def check(self) -> None:
        """Raise UserError that names a setting whose value makes no sense."""
        super().check()
        self.expect_from(("batch_size", "gradient_accumulation", "log_every", "save_every", "keep_checkpoints"), 1)
        self.expect_from(("max_steps", "warmup_steps", "weight_decay", "pictures_every"), 0)
        self.expect_from(("workers",), 0, MOST_WORKERS)
        self.expect_from(("seed",), 0, LARGEST_SEED)
        self.expect_positive(("learning_rate", "max_grad_norm"))
        self.expect("max_seconds", self.max_seconds > 0, "a positive number")
        self.expect("epochs", 0 < self.epochs <= LARGEST, f"a positive number, at most {LARGEST}")
        self.expect(
            "pictures_every",
            not self.pictures_every or find_spec("matplotlib") is not None,
            "0 without the Python package 'matplotlib'; install it with: pip install '.[demo]'",
        )
