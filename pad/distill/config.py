"""Settings of a distillation run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pad.settings import Settings

# What a resumed run may change: nothing that decides what is learned.
FREE_ON_RESUME = (
    "output", "teacher_cache", "download", "device", "workers", "log_every", "report_to", "pictures_every",
    "save_every", "keep_checkpoints", "resume",
)  # fmt: skip


@dataclass
class DistillConfig(Settings):
    """Distill a frozen text encoder into a speech encoder on transcribed speech."""

    student: str
    """wav2vec 2.0-like encoder: a transformers checkpoint folder or hub name"""
    teacher: str
    """text encoder of the same width: a transformers checkpoint folder or hub name"""
    data: str
    """transcribed speech: a folder, a manifest (.tsv, .jsonl), librispeech:SPLIT:FOLDER, librilight:10h:FOLDER or
    huggingface:NAME:SPLIT (docs/training.md)"""
    output: str
    """new folder for checkpoints, settings and the distilled student"""

    preset: str = "pad-slocal"
    """objective: pad-glob, pad-tlocal, pad-slocal, ... (docs/training.md lists all)"""
    temperature: float | None = None
    """of the soft alignment; 0 is the hard one; None: the preset's"""
    prior_layers: tuple[int, ...] = ()
    """layers of the student, from 0, whose attention makes the speech prior; none named: all, as in the paper"""
    teacher_layer: int = -1
    """hidden state of the teacher that gives the token embeddings, -1 the last"""
    center_teacher: bool = False
    """subtract the mean token embedding of the transcripts"""
    teacher_cache: str = ""
    """keep the teacher's outputs by text: 'memory', or a folder that later runs can use too"""
    linear_map: bool = False
    """for widths that differ: train one linear map from the teacher's width to the student's beside the student"""

    on_error: Literal["raise", "skip"] = "raise"
    """what becomes of a bad sample: it ends the run, or it is left out and counted"""
    download: bool = False
    """fetch a corpus that is not there (librispeech:, librilight:)"""
    max_seconds: float = 20.0
    """leave out longer utterances"""

    max_steps: int = 0
    """optimizer steps; 0: as many as epochs takes"""
    epochs: float = 10.0
    """passes over the data"""
    batch_size: int = 16
    """utterances in a batch of one process"""
    gradient_accumulation: int = 1
    """batches in an optimizer step"""
    learning_rate: float = 5e-5
    """peak learning rate of AdamW"""
    warmup_steps: float = 0.1
    """steps of linear warm-up, before the linear decay; below 1: the share of all steps"""
    weight_decay: float = 0.0
    """of AdamW"""
    max_grad_norm: float = 1.0
    """norm to which gradients are clipped"""
    freeze_feature_encoder: bool = False
    """do not train the student's convolutions"""
    gradient_checkpointing: bool = False
    """compute the student's layers again in the backward pass: less memory, more time"""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """float32, or autocast to one of the others"""
    device: Literal["auto", "cpu"] = "auto"
    """auto: a GPU where there is one"""
    workers: int = 0
    """processes that read audio, 0: the training process"""
    seed: int = 0
    """of the order of the data and of dropout"""
    log_every: int = 10
    """steps between lines of the log"""
    report_to: str = "none"
    """where the log goes besides log.json, as transformers names it: tensorboard, wandb, ..."""
    pictures_every: int = 0
    """steps between pictures of the alignment of one utterance, 0: none"""
    save_every: int = 500
    """steps between checkpoints"""
    keep_checkpoints: int = 2
    """how many checkpoints to keep"""
    resume: bool = False
    """go on from the last whole checkpoint in the output folder; from the start where there is none"""

    def check(self) -> None:
        """Raise UserError for a value that makes no sense, by its name."""
        for name in ("batch_size", "gradient_accumulation", "log_every", "save_every", "keep_checkpoints"):
            self.expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "warmup_steps", "workers", "weight_decay", "seed", "pictures_every"):
            self.expect(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "max_grad_norm", "max_seconds"):
            self.expect(name, getattr(self, name) > 0, "a positive number")
        self.expect("epochs", self.max_steps > 0 or self.epochs > 0, "a positive number, or max_steps")
        self.expect("temperature", self.temperature is None or self.temperature >= 0, "0 or more")
        self.expect("prior_layers", all(layer >= 0 for layer in self.prior_layers), "numbers of layers, from 0")
        self.expect("precision", self.precision in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16")
        self.expect("device", self.device in ("auto", "cpu"), "auto or cpu")
        self.expect("on_error", self.on_error in ("raise", "skip"), "raise or skip")
