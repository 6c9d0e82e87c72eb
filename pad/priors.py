"""Significance priors of speech and text: how much attention a frame or a token receives (PAD, ASP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pad_kernels import significance_from_attentions


def speech_prior(attentions: Sequence[torch.Tensor], frame_mask: torch.Tensor) -> torch.Tensor:
    """Prior [B, M] float32 of the student's frames; attentions: one map [B, H, M, M] per layer.

    The prior is a constant for the gradient. frame_mask: [B, M] bool, True at real frames.
    """
    with torch.no_grad():
        return significance_from_attentions([layer.detach() for layer in attentions], frame_mask)


def text_prior(attentions: Sequence[torch.Tensor], text_mask: torch.Tensor) -> torch.Tensor:
    """Prior [B, N] float32 of the teacher's tokens; attentions: one map [B, H, N, N] per layer.

    text_mask: [B, N] bool, False at padding and at special tokens: [CLS] and [SEP] soak up attention, so
    they are masked and the rest is renormalised.
    """
    with torch.no_grad():
        return significance_from_attentions([layer.detach() for layer in attentions], text_mask)
