"""PAD as a loss in a Lightning module: `python examples/lightning_module.py` (needs `pip install lightning`)."""

import lightning
import torch
from stand_in import batch, models
from torch.utils.data import DataLoader

from pad import record_significance
from pad_kernels import PADLoss


class Distillation(lightning.LightningModule):
    """A student, trained to say what a frozen teacher reads."""

    def __init__(self):
        super().__init__()
        self.student, teacher = models()
        self.teacher = [teacher]  # in a list: not saved with the module, not put into training mode
        self.loss = PADLoss(level="token", temperature=0.1)

    def training_step(self, inputs, index):
        teacher = self.teacher[0].to(self.device)
        frames = self.student._get_feat_extract_output_lengths(inputs["lengths"])
        frame_mask = torch.arange(int(frames.max()), device=self.device) < frames[:, None]
        with record_significance(self.student, frame_mask) as of_speech:
            speech = self.student(inputs["input_values"]).last_hidden_state
        with torch.no_grad(), record_significance(teacher, inputs["text_mask"]) as of_text:
            text = teacher(inputs["text_ids"], attention_mask=inputs["text_attention_mask"]).last_hidden_state
        loss = self.loss(speech, text, frame_mask, inputs["text_mask"], of_speech.prior(), of_text.prior())
        print(f"step {self.global_step}: loss {loss.item():.4f}")
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.student.parameters(), lr=1e-3)


trainer = lightning.Trainer(max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
trainer.fit(Distillation(), DataLoader(range(60), batch_size=3, collate_fn=lambda items: batch()))
