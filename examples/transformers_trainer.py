"""PAD as a second loss in transformers' Trainer: `python examples/transformers_trainer.py`."""

import tempfile

import torch
from stand_in import batch, models
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from pad import record_significance
from pad_kernels import PADLoss


class Classifier(torch.nn.Module):
    """Your own model: the student and a head."""

    def __init__(self, student):
        super().__init__()
        self.student, self.head = student, torch.nn.Linear(student.config.hidden_size, 3)

    def forward(self, input_values, frame_mask):
        speech = self.student(input_values).last_hidden_state
        pooled = (speech * frame_mask[..., None]).sum(dim=1) / frame_mask.sum(dim=1, keepdim=True)
        return speech, self.head(pooled)


class PADTrainer(Trainer):
    """Trainer with a frozen teacher beside it; progress, checkpoints, accumulation and DDP stay Trainer's."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        # Trainer leaves the division by the accumulated steps to models that take **kwargs; here nobody else does it.
        self.model_accepts_loss_kwargs = False
        self.teacher = teacher.to(self.args.device)
        self.distillation = PADLoss(level="span", temperature=0.1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with record_significance(model, inputs["frame_mask"]) as of_speech:  # finds the student inside, DDP or not
            speech, scores = model(inputs["input_values"], inputs["frame_mask"])
        with torch.no_grad(), record_significance(self.teacher, inputs["text_mask"]) as of_text:
            text = self.teacher(inputs["text_ids"], attention_mask=inputs["text_attention_mask"]).last_hidden_state
        loss = functional.cross_entropy(scores, inputs["labels"]) + self.distillation(
            speech, text, inputs["frame_mask"], inputs["text_mask"], of_speech.prior(), of_text.prior()
        )
        return (loss, scores) if return_outputs else loss


student, teacher = models()


def collate(items) -> dict[str, torch.Tensor]:
    """A batch, with the mask of frames made where the number of samples is known."""
    inputs = batch()
    frames = student._get_feat_extract_output_lengths(inputs.pop("lengths"))
    return inputs | {"frame_mask": torch.arange(int(frames.max())) < frames[:, None]}


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(folder, max_steps=20, learning_rate=1e-3, logging_steps=1, save_strategy="no",
                                  remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True,
                                  per_device_train_batch_size=3, lr_scheduler_type="constant")  # fmt: skip
    trainer = PADTrainer(Classifier(student), arguments, collate, train_dataset=list(range(60)), teacher=teacher)
    trainer.train()
for entry in trainer.state.log_history:
    if "loss" in entry:
        print(f"step {entry['step']}: loss {float(entry['loss']):.4f}")
