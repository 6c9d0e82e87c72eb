"""PAD as a second loss in a loop of your own: `python examples/bare_loop.py`."""

import torch
from stand_in import batch, models
from torch.nn import functional

from pad import record_significance
from pad_kernels import pad_loss

student, teacher = models()
classifier = torch.nn.Linear(student.config.hidden_size, 3)  # your own task
optimizer = torch.optim.AdamW([*student.parameters(), *classifier.parameters()], lr=1e-3)

for step in range(20):
    inputs = batch()
    # Which frames are real: from the numbers of samples, by the student's own strides.
    frames = student._get_feat_extract_output_lengths(inputs["lengths"])
    frame_mask = torch.arange(int(frames.max())) < frames[:, None]

    with record_significance(student, frame_mask) as of_speech:
        speech = student(inputs["input_values"]).last_hidden_state
    # [CLS] and [SEP] soak up attention, so text_mask leaves them out.
    with torch.no_grad(), record_significance(teacher, inputs["text_mask"]) as of_text:
        text = teacher(inputs["text_ids"], attention_mask=inputs["text_attention_mask"]).last_hidden_state

    distillation = pad_loss(
        speech, text, frame_mask, inputs["text_mask"],
        speech_prior=of_speech.prior(), text_prior=of_text.prior(), level="span", temperature=0.1,
    )  # fmt: skip
    pooled = (speech * frame_mask[..., None]).sum(dim=1) / frame_mask.sum(dim=1, keepdim=True)
    loss = functional.cross_entropy(classifier(pooled), inputs["labels"]) + distillation

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}, of it PAD {distillation.item():.4f}")
