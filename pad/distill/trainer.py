"""The training loop: transformers' Trainer with a student and a frozen teacher."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from pad.distill.config import DistillConfig
from pad.distill.data_state import save_data_state, unreadable_anywhere
from pad.distill.divergence import StopWhenDiverged, check_finite
from pad.distill.manifest import MANIFEST, rotate, seal
from pad.errors import UserError
from pad.files import follow_umask
from pad.models import width
from pad.processes import process_count
from pad.step.collate import Collator, LengthBucketSampler, SpeechTextDataset
from pad.step.objective import Objective
from pad.step.teacher import Teacher


class _SetEpoch(TrainerCallback):
    """Tells the sampler which epoch begins, also when a run resumes in the middle of one."""

    def __init__(self, sampler: LengthBucketSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class StudentWithMap(nn.Module):
    """A student and a linear map from the teacher's width to its own; trained together, saved separately."""

    def __init__(self, student: PreTrainedModel, teacher_width: int):
        super().__init__()
        self.student = student
        self.map = nn.Linear(teacher_width, width(student), bias=False)

    @property
    def config(self):
        return self.student.config

    def forward(self, text: torch.Tensor, **inputs):
        """(student outputs, text [B, N, D] in the student's width)."""
        return self.student(**inputs), self.map(text)


class DistillationTrainer(Trainer):
    """Trains the student to minimize an objective against a teacher.

    lengths: one number per training utterance, used to make batches of utterances of similar length.
    `step_losses` holds the loss of every batch since this process began to train: numbers, and tensors of the step at
    hand. Training raises Diverged at a loss or a gradient norm that is not finite.
    """

    loss_is_scaled_for_ga = False  # a mean over the batch: Trainer divides it when accumulating gradients

    train_dataset: SpeechTextDataset

    def __init__(self, *args, teacher: Teacher, objective: Objective, lengths, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher: Teacher = teacher
        self.objective: Objective = objective
        self.model_accepts_loss_kwargs = False
        # Of all processes together: each takes its share of the same order.
        batch_size = self.args.train_batch_size * self.args.world_size
        self.sampler = LengthBucketSampler(lengths, batch_size, self.args.seed)
        self.add_callback(_SetEpoch(self.sampler))
        self.step_losses: list[torch.Tensor | float] = []
        # Trainer would remove older checkpoints before the newest is sealed.
        self.keep_checkpoints, self.args.save_total_limit = self.args.save_total_limit, None
        self.add_callback(StopWhenDiverged(self))

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        if not (Path(resume_from_checkpoint) / MANIFEST).is_file():
            raise UserError(
                f"resume: {resume_from_checkpoint} was removed meanwhile; expected no other run in its folder"
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _run_epoch(self, *args, **kwargs):
        # A finished run that is resumed would take one step more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint, list its files, and only then remove older ones; after an error nothing of it stays."""
        check_finite(model, self.args, self.state.global_step)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        main = self.args.should_save
        if main:
            shutil.rmtree(folder, ignore_errors=True)  # one that is not whole
        self.accelerator.wait_for_everyone()
        unreadable = self.unreadable()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if main:
                save_data_state(folder, self.train_dataset, self.args.world_size, unreadable)
                seal(folder)
        except BaseException:
            if main:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if main:
            rotate(folder.parent, self.keep_checkpoints or 1, self.state.global_step, remove_later=True)

    def unreadable(self) -> list[int]:
        """Numbers of the utterances that one of the processes could not read; all of them call this together."""
        return unreadable_anywhere(self.train_dataset, self.args.device)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            follow_umask(*Path(str(folder)).glob("*.safetensors"))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective for one batch of the Collator."""
        loss, outputs = batch_loss(model, inputs, self.teacher, self.objective)
        if model.training:
            self.step_losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss


def batch_loss(model, batch, teacher: Teacher, objective: Objective):
    """(loss, student outputs) for one batch of the Collator; model: a student, or a StudentWithMap."""
    inputs, real_frames = batch["speech"], batch["frame_mask"]
    plain = getattr(model, "module", model)

    def read():
        return teacher(batch["text_ids"], batch["text_attention_mask"], batch["text_mask"])

    with objective.recording(model, real_frames) as record:
        if isinstance(plain, StudentWithMap):
            text, text_prior = read()
            outputs, text = model(text, **inputs)
        else:
            outputs = model(**inputs)
            # A GPU is busy with the student while the host goes through the teacher.
            text, text_prior = read()
    speech = outputs.last_hidden_state
    speech_prior = None if record is None else record.prior()
    loss = objective(speech, text.to(speech.dtype), real_frames, batch["text_mask"], speech_prior, text_prior)
    return loss, outputs


@torch.no_grad()
def try_models(model, collator: Collator, teacher: Teacher, objective: Objective) -> None:
    """Run a second of noise and a few words through both models; raises UserError for a model that does not fit."""
    layout, rate = collator.front_end.layout, collator.front_end.sampling_rate
    length = min(max(rate, layout.shortest), layout.longest or rate)
    noise = np.random.default_rng(0).standard_normal(length, dtype=np.float32)
    with _blaming("teacher", "BERT, RoBERTa or DistilBERT"):
        batch = collator([{"samples": noise, "transcript": "a few words"}])
        teacher(batch["text_ids"], batch["text_attention_mask"], batch["text_mask"])
    model.eval()
    with _blaming("student", "wav2vec 2.0, HuBERT, WavLM or Whisper"):
        batch_loss(model, batch, teacher, objective)


@contextmanager
def _blaming(role: str, expected: str) -> Iterator[None]:
    """Turn any error of a model into a UserError that names its role."""
    try:
        yield
    except Exception as error:
        reason = str(error).removeprefix("model: ") or type(error).__name__
        raise UserError(f"{role}: does not fit this objective: {reason}; expected one such as {expected}") from error


def training_arguments(config: DistillConfig, checkpoints: str) -> TrainingArguments:
    """Trainer's settings for a run whose checkpoints go to the folder `checkpoints`; raises UserError."""
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    if config.precision == "float16" and on_cpu:
        raise UserError("precision: float16 needs a GPU, and this run has none; expected float32 or bfloat16")
    installed = get_available_reporting_integrations()
    config.expect("report_to", config.report_to in ("none", "all", *installed),
                  f"none, all or what is installed of transformers' integrations ({', '.join(installed)})")  # fmt: skip
    with _refusing_launch():
        return TrainingArguments(
            output_dir=checkpoints,
            max_steps=config.max_steps or -1,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.precision == "bfloat16",
            fp16=config.precision == "float16",
            use_cpu=on_cpu,
            dataloader_num_workers=config.workers,
            dataloader_pin_memory=torch.cuda.is_available() and not on_cpu,
            seed=config.seed,
            logging_steps=config.log_every,
            logging_nan_inf_filter=False,  # the log says what was computed
            save_steps=config.save_every,
            save_total_limit=config.keep_checkpoints,
            remove_unused_columns=False,
            label_names=[],
            report_to=config.report_to,
            disable_tqdm=True,
            # wav2vec 2.0's vector for masked frames gets no gradient. Trainer expects that, but not with checkpointing.
            ddp_find_unused_parameters=True,
        )


@contextmanager
def _refusing_launch() -> Iterator[None]:
    """Turn torch's and accelerate's refusal of what a launcher has left in the environment into a UserError."""
    try:
        yield
    except ValueError as error:
        if process_count() <= 1:
            raise
        raise UserError(
            f"WORLD_SIZE: the environment asks for {process_count()} processes: {error}; expected the environment of "
            "torchrun or accelerate launch, or one without WORLD_SIZE"
        ) from error
