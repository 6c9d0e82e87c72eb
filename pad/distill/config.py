"""Settings of a distillation run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from pad.settings import LARGEST, LARGEST_SEED, MOST_WORKERS, Settings

# What a resumed run may change: nothing that affects what is learned.
FREE_ON_RESUME = (
    "output", "teacher_cache", "download", "device", "workers", "log_every", "report_to", "pictures_every",
    "save_every", "keep_checkpoints", "resume",
)  # fmt: skip


@dataclass
class DistillConfig(Settings):
    """Distill a frozen text encoder into a speech encoder on transcribed speech."""

    paths = ("student", "teacher", "data", "output", "teacher_cache")

    student: str
    """speech encoder such as wav2vec 2.0, HuBERT, WavLM or Whisper: a transformers checkpoint folder or hub name"""
    teacher: str
    """text encoder of the same width, such as BERT: a transformers checkpoint folder or hub name"""
    data: str
    """transcribed speech: a folder, a manifest (.tsv, .jsonl), librispeech:SPLIT:FOLDER, librilight:10h:FOLDER or
    huggingface:NAME:SPLIT (docs/training.md)"""
    output: str
    """new folder for checkpoints, settings and the distilled student"""

    preset: str = "early-slocal-soft"
    """training objective; the paper's are pad-glob, pad-tlocal and pad-slocal (docs/training.md lists all). The default
    takes its prior from the student's first three layers"""
    temperature: float | None = None
    """temperature of the soft alignment; 0: hard alignment; None: the value of the preset"""
    prior_layers: tuple[int, ...] = ()
    """student layers, counted from 0, whose attention gives the speech prior; empty: as in the preset, all in most"""
    prior_layer_weights: tuple[float, ...] = ()
    """weight of each of prior_layers in the speech prior; empty: all the same or, if prior_layers is empty too, as in
    the preset"""
    anchors: Literal["", "topk", "peaks", "stride"] = ""
    """frames around which spans lie: topk, those of the highest prior; peaks, the same but not next to each other;
    stride, evenly spaced; empty: as in the preset"""
    prior_exponent: float = 1.0
    """raise the speech prior to this power: below 1 it is flatter"""
    pooling_prior: bool = True
    """weigh the frames of a span by the speech prior; if not, the prior only chooses the anchors"""
    text_prior: bool | None = None
    """weigh the tokens by the text prior; None: as in the preset"""
    teacher_layer: int = -1
    """hidden state of the teacher to use as token embeddings; -1: the last"""
    center_teacher: bool = False
    """subtract the mean token embedding of all transcripts from the teacher's embeddings"""
    lowercase: bool = False
    """give the teacher the transcripts in lower case: for a cased teacher and transcripts in capital letters"""
    teacher_cache: str = ""
    """cache the teacher's outputs: 'memory', or a folder that later runs can reuse; empty: no cache"""
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
        self.expect_temperature(self.temperature)
        self.expect("prior_layers", all(layer >= 0 for layer in self.prior_layers), "layer numbers, counted from 0")
        self.expect("prior_layers", len(set(self.prior_layers)) == len(self.prior_layers), "each layer once")
        self.expect(
            "prior_layer_weights",
            all(weight > 0 for weight in self.prior_layer_weights) and math.isfinite(sum(self.prior_layer_weights)),
            "positive, finite numbers",
        )
        self.expect("prior_exponent", 0 < self.prior_exponent <= 10, "a number above 0, at most 10")
        self.expect(
            "pictures_every",
            not self.pictures_every or find_spec("matplotlib") is not None,
            "0 without the Python package 'matplotlib'; install it with: pip install '.[demo]'",
        )
        self.expect("anchors", self.anchors in ("", "topk", "peaks", "stride"), "topk, peaks or stride")
        self.expect("precision", self.precision in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16")
        self.expect("device", self.device in ("auto", "cpu"), "auto or cpu")
        self.expect("on_error", self.on_error in ("raise", "skip"), "raise or skip")
