"""The training loop: transformers' Trainer around a student, with a frozen teacher beside it."""

from __future__ import annotations

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from pad.batching import LengthBucketSampler, frame_mask
from pad.config import DistillConfig
from pad.objective import Objective
from pad.priors import speech_prior
from pad.teacher import Teacher


class _SetEpoch(TrainerCallback):
    """Tells the sampler which epoch begins; a run resumed amid an epoch included."""

    def __init__(self, sampler: LengthBucketSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class DistillationTrainer(Trainer):
    """Trains the student to minimise an objective against a teacher.

    lengths: one number per training utterance, by which batches are made of utterances of similar length.
    `step_losses` holds the loss of every batch since this process began to train (float32 scalars).
    """

    loss_is_scaled_for_ga = False  # a mean over the batch: Trainer divides it when it accumulates gradients

    def __init__(self, *args, teacher: Teacher, objective: Objective, lengths, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher, self.objective = teacher, objective
        self.model_accepts_loss_kwargs = False
        self.sampler = LengthBucketSampler(lengths, self.args.train_batch_size, self.args.seed)
        self.add_callback(_SetEpoch(self.sampler))
        self.step_losses: list[torch.Tensor] = []

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Objective of one batch as the Collator gives it."""
        loss, outputs = batch_loss(model, inputs, self.teacher, self.objective)
        if model.training:
            self.step_losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss


def batch_loss(model, batch, teacher: Teacher, objective: Objective):
    """(loss, student outputs) of one batch as the Collator gives it."""
    speech_inputs = {name: batch[name] for name in ("input_values", "attention_mask") if name in batch}
    outputs = model(**speech_inputs, output_attentions=objective.speech_prior)
    speech = outputs.last_hidden_state
    real_frames = frame_mask(batch["frame_lengths"], speech.shape[1])
    prior = None
    if objective.speech_prior:
        prior = speech_prior(outputs.attentions, real_frames)
    text, text_prior = teacher(batch["text_ids"], batch["text_attention_mask"], batch["text_mask"])
    loss = objective(speech, text.to(speech.dtype), real_frames, batch["text_mask"], prior, text_prior)
    return loss, outputs


def training_arguments(config: DistillConfig, checkpoints: str) -> TrainingArguments:
    """Trainer's settings for a run whose checkpoints go to the folder `checkpoints`."""
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
        use_cpu=config.device == "cpu",
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available() and config.device != "cpu",
        seed=config.seed,
        logging_steps=config.log_every,
        save_steps=config.save_every,
        save_total_limit=config.keep_checkpoints,
        remove_unused_columns=False,
        label_names=[],
        report_to="none",
        disable_tqdm=True,
    )
