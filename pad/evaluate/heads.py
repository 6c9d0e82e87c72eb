"""The heads that are trained on the hidden states of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class LayerSum(nn.Module):
    """Sum of the hidden states with learned weights: a softmax over the layers, uniform at first."""

    def __init__(self, layers: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))

    @property
    def weights(self) -> torch.Tensor:
        """[layers], of sum 1."""
        return self.scores.softmax(dim=0)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[B, layers, ..., D] to [B, ..., D]."""
        return torch.tensordot(self.weights, states, dims=([0], [1]))


class UtteranceHead(nn.Module):
    """Layer sum, projection, mean over frames, and a linear classifier for each label.

    The sum and the projection are affine, so the mean over frames may come first: the inputs are means.
    """

    def __init__(self, layers: int, width: int, classes: Sequence[int], projection: int = 256):
        super().__init__()
        self.layer_sum = LayerSum(layers)
        self.projection = nn.Linear(width, projection)
        self.classifiers = nn.ModuleList(nn.Linear(projection, count) for count in classes)

    def forward(self, means: torch.Tensor) -> list[torch.Tensor]:
        """Means [B, layers, D] to logits [B, classes], one tensor for each label."""
        pooled = self.projection(self.layer_sum(means))
        return [classifier(pooled) for classifier in self.classifiers]


class SlotHead(nn.Module):
    """Layer sum, projection, two bidirectional LSTM layers with dropout, a linear layer over the tokens."""

    def __init__(self, layers: int, width: int, tokens: int, hidden: int = 1024, spec_augment: bool = True):
        super().__init__()
        self.layer_sum = LayerSum(layers)
        self.projection = nn.Linear(width, hidden)
        self.recurrent = nn.LSTM(hidden, hidden, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(2 * hidden, tokens)
        self.spec_augment = spec_augment

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """States [B, layers, M, D] and numbers of real frames [B] to logits [B, M, tokens]."""
        features = self.layer_sum(states)
        if self.training and self.spec_augment:
            features = spec_augment(features)
        packed = pack_padded_sequence(self.projection(features), lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.output(self.dropout(output))


def spec_augment(features: torch.Tensor) -> torch.Tensor:
    """Features [B, M, D] with spans of time and of features set to 0 at random.

    Four spans of fewer than 50 features; up to 20 spans of time, one for every 25 frames, each of fewer than
    M / 25 and 40 frames: SUPERB's adaptive SpecAugment (Park et al., 2020) without its time warp.
    """
    batch, frames, width = features.shape
    time = _spans(batch, frames, min(20, frames // 25), min(40, frames // 25))
    channels = _spans(batch, width, 4, min(50, width // 4))
    masked = time[:, :, None] | channels[:, None, :]
    return features.masked_fill(masked.to(features.device), 0.0)


def _spans(batch: int, size: int, count: int, limit: int) -> torch.Tensor:
    """Bool [batch, size]: True within `count` random spans of fewer than `limit` places."""
    if count < 1 or limit < 1:
        return torch.zeros(batch, size, dtype=torch.bool)
    lengths = torch.randint(0, limit, (batch, count, 1))
    starts = torch.randint(0, max(1, size - int(lengths.max())), (batch, count, 1))
    places = torch.arange(size)
    return ((places >= starts) & (places < starts + lengths)).any(dim=1)
