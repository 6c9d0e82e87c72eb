"""The alignment of one utterance's speech and text, as numbers to draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from pad.errors import UserError
from pad.step.collate import Collator, to_device
from pad.step.objective import Objective
from pad.step.teacher import Teacher
from pad.students import FrameLayout
from pad_kernels import align, alignment_matrix

# For the matrix that is drawn for a hard objective, whose own matrix has one entry per token.
SOFT_TEMPERATURE = 0.1
_ONE_FRAME = 1e-9  # a scale that makes every span as short as spans are


@dataclass(frozen=True)
class SpokenText:
    """What was said: samples [T], the layout of a student's frames in them, and N tokens; words: (start, end, word)."""

    samples: np.ndarray
    sampling_rate: int
    layout: FrameLayout
    tokens: list[str]
    words: Sequence[tuple[float, float, str]] | None = None


@dataclass(frozen=True)
class AlignedUtterance:
    """What `picture.draw` draws; tensors on the CPU, times in seconds.

    samples [T]; centers [M] and hop: the times of the frames; tokens: N labels; speech_prior [M], text_prior [N], each
    None if the objective does not use it; start, end [U] int: the frames of each unit, a frame each at the token
    level; anchors: the frames that spans lie around; matrix [N, U]: soft alignment; unit [N]: the unit with which the
    objective aligns each token; words: (start, end, word) or None.
    """

    samples: np.ndarray
    sampling_rate: int
    centers: torch.Tensor
    hop: float
    tokens: list[str]
    speech_prior: torch.Tensor | None
    text_prior: torch.Tensor | None
    start: torch.Tensor
    end: torch.Tensor
    anchors: list[int]
    matrix: torch.Tensor
    unit: torch.Tensor
    loss: float
    objective: Objective
    words: Sequence[tuple[float, float, str]] | None = None

    def frame_matrix(self) -> torch.Tensor:
        """[N, M]: each unit's weight spread evenly over its frames."""
        frames = torch.arange(len(self.centers))
        inside = ((frames >= self.start[:, None]) & (frames < self.end[:, None])).to(self.matrix.dtype)
        return self.matrix @ (inside / inside.sum(dim=1, keepdim=True).clamp_min(1))


@torch.no_grad()
def align_utterance(
    encoder, collator: Collator, teacher: Teacher, objective: Objective, samples: np.ndarray, transcript: str,
    words: Sequence[tuple[float, float, str]] | None = None, linear_map: torch.Tensor | None = None,
) -> AlignedUtterance:  # fmt: skip
    """Align one utterance with an objective and the priors that it uses.

    encoder: a student's, which takes what the collator gives; its mode is left as it was. samples: [T] float32 at its
    sampling rate; teacher: gives its prior if the objective uses it; linear_map: [student's width, teacher's width],
    None if they are equal.
    Raises UserError for a model whose prior cannot be recorded.
    """
    training, device = encoder.training, next(encoder.parameters()).device
    batch = to_device(collator([{"samples": samples, "transcript": transcript}]), device)
    frames = batch["frame_mask"]
    encoder.eval()
    try:
        with _prior_of("student"), objective.recording(encoder, frames) as record:
            speech = encoder(**batch["speech"]).last_hidden_state[frames].float()
            speech_prior = None if record is None else record.prior()[frames]
    finally:
        encoder.train(training)
    mask = batch["text_mask"]
    with _prior_of("teacher"):
        text, text_prior = teacher(batch["text_ids"], batch["text_attention_mask"], mask)
    text = text[mask].float()
    if linear_map is not None:
        text = text @ linear_map.T.to(text)
    tokens = collator.tokenizer.convert_ids_to_tokens(batch["text_ids"][0][mask[0]].tolist())
    tokens = [token.replace("▁", "") for token in tokens]
    front_end = collator.front_end
    spoken = SpokenText(samples, front_end.sampling_rate, front_end.layout, tokens, words)
    return aligned(speech, text, speech_prior, text_prior[mask] if objective.text_prior else None, objective, spoken)


@contextmanager
def _prior_of(role: str) -> Iterator[None]:
    """Turn the recorder's refusal of a model into a UserError that names its role."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("model: "):
            raise
        reason = str(error).removeprefix("model: ")
        raise UserError(f"{role}: {reason} (the presets slocal and tlocal need no prior)") from error


def aligned(
    speech: torch.Tensor, text: torch.Tensor, speech_prior: torch.Tensor | None, text_prior: torch.Tensor | None,
    objective: Objective, spoken: SpokenText,
) -> AlignedUtterance:  # fmt: skip
    """The same from embeddings: speech [M, D], text [N, D], speech_prior [M] and text_prior [N] where they are used."""
    speech, text = speech.detach().cpu(), text.detach().cpu()
    speech_prior = speech_prior.detach().cpu() if objective.speech_prior and speech_prior is not None else None
    text_prior = text_prior.detach().cpu() if objective.text_prior and text_prior is not None else None
    frames = len(speech)
    recorded, weights = (None if values is None else values[None] for values in (speech_prior, text_prior))
    everything = recorded, torch.ones(1, frames, dtype=torch.bool), len(text)
    spans, prior = objective.units(*everything)
    narrow, _ = replace(objective, scales=(_ONE_FRAME,)).units(*everything)
    anchors = [] if narrow is None else narrow.start[narrow.end > narrow.start].tolist()
    start = torch.arange(frames) if spans is None else spans.start[0].long()
    end = start + 1 if spans is None else spans.end[0].long()
    hard = align(speech[None], text[None], spans, speech_prior=prior, temperature=objective.temperature)
    temperature = objective.temperature or SOFT_TEMPERATURE
    matrix = alignment_matrix(speech[None], text[None], spans, speech_prior=prior, temperature=temperature)
    masks = (torch.ones(1, frames, dtype=torch.bool), torch.ones(1, len(text), dtype=torch.bool))
    loss = objective(speech[None], text[None], *masks, recorded, weights)
    rate, layout = spoken.sampling_rate, spoken.layout
    return AlignedUtterance(
        spoken.samples, rate, layout.centers(frames) / rate, layout.hop / rate, spoken.tokens,
        speech_prior, text_prior, start, end, anchors, matrix[0], hard.unit[0], float(loss), objective, spoken.words,
    )  # fmt: skip
