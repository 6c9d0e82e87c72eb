"""Whisper's encoder on log-mel features that are kept: frames of 20 ms, only the utterance's own, with a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from pad.priors.recorder import record_significance


class FeatureEncoder(nn.Module):
    """A WhisperEncoder on as many frames as there are."""

    HOP = 320  # samples

    def __init__(self, encoder: WhisperEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, mask: Tensor) -> list[Tensor]:
        """Hidden states [B, M, D] before the first layer and after each; features [B, 80, 2 M], mask [B, M] bool."""
        trained = self.encoder.conv1.weight.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(trained):
            hidden = functional.gelu(self.encoder.conv1(features))
            hidden = functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
            hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        keys = None if mask.all() else mask[:, None, None, :]
        states = [hidden]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], keys))
        states[-1] = self.encoder.layer_norm(states[-1])
        return states

    def significance_by_layer(self, features: Tensor, mask: Tensor) -> Tensor:
        """The prior that the attention of each layer gives, [B, M, layers]."""
        priors = []
        for number in range(len(self.encoder.layers)):
            with record_significance(self, mask, layers=[number]) as record:
                self(features, mask)
            priors.append(record.prior())
        return torch.stack(priors, dim=-1)


def encoder_of(model: WhisperModel) -> FeatureEncoder:
    """The encoder of a Whisper model; its convolutions stay as they are."""
    encoder = model.get_encoder()
    for module in (encoder.conv1, encoder.conv2):
        module.requires_grad_(False)
    return FeatureEncoder(encoder)


def random_encoder(config: WhisperConfig, seed: int) -> FeatureEncoder:
    """The same encoder with random weights, all of them trained."""
    torch.manual_seed(seed)
    return FeatureEncoder(WhisperEncoder(config))
