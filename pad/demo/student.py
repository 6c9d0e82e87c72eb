"""The demo's student: a small wav2vec 2.0 encoder with random weights, warmed up on audio alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, Wav2Vec2Config, Wav2Vec2Model
from transformers.audio_utils import mel_filter_bank

from pad.demo.corpus import SAMPLING_RATE
from pad.students import FrameLayout, Student
from pad.students.waveforms import convolution_layout, default_feature_extractor, student_of

_MELS, _WINDOW = 40, 400  # bands; samples (25 ms)
_CROP = 19200  # samples of an utterance that a warm-up step sees: 1.2 s


def new_student(width: int, layers: int = 2, seed: int = 0, intermediate_size: int = 1536) -> Student:
    """A student of the teacher's width with random weights: 25 frames per second."""
    config = Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=6,
        intermediate_size=intermediate_size,
        conv_dim=(64, 128, 256, 256),
        conv_stride=(10, 4, 4, 4),
        conv_kernel=(20, 8, 8, 8),
        feat_extract_norm="group",
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        do_stable_layer_norm=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
    )
    torch.manual_seed(seed)
    return student_of(Wav2Vec2Model(config), default_feature_extractor(config), {})


def random_copy(student: Student, seed: int) -> PreTrainedModel:
    """The encoder of a student with random weights, trained as those of a new model; the student stays as it is."""
    whole = student.encoder if student.whole is None else student.whole
    torch.manual_seed(seed)
    fresh = type(whole)(whole.config)
    state, trained = fresh.state_dict(), {name: weight.requires_grad for name, weight in fresh.named_parameters()}
    encoder = copy.deepcopy(student.encoder)
    encoder.load_state_dict({name: state[student.prefix + name] for name in encoder.state_dict()})
    for name, weight in encoder.named_parameters():
        weight.requires_grad_(trained[student.prefix + name])
    return encoder


def log_mel(samples: torch.Tensor, layout: FrameLayout) -> torch.Tensor:
    """Log-mel energies [B, M, 40] around the center of each frame; samples [B, T] at 16 kHz."""
    filters = torch.from_numpy(
        mel_filter_bank(_WINDOW // 2 + 1, _MELS, 60.0, 7600.0, SAMPLING_RATE, norm=None, mel_scale="htk")
    ).float()
    first = int(layout.shortest / 2 - _WINDOW / 2)
    frames = int(layout.frames(torch.tensor(samples.shape[1])))
    windows = samples[:, first:].unfold(1, _WINDOW, layout.hop)[:, :frames]
    power = torch.fft.rfft(windows * torch.hann_window(_WINDOW)).abs().square()
    return (power @ filters + 1e-6).log()


def warm_up(model: Wav2Vec2Model, waveforms: list[np.ndarray], steps: int, seed: int, batch_size: int = 32,
            learning_rate: float = 1e-3) -> Iterator[float]:  # fmt: skip
    """Train the convolutions to predict log-mel energies, without text; yields the loss of each step."""
    layout = convolution_layout(model.config)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = nn.Sequential(nn.LayerNorm(model.config.conv_dim[-1]), nn.Linear(model.config.conv_dim[-1], _MELS))
    parameters = [*model.feature_extractor.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    long_enough = [waveform for waveform in waveforms if len(waveform) >= _CROP]
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(long_enough), (batch_size,), generator=generator).tolist()
        crops = torch.stack([_crop(long_enough[number], generator) for number in chosen])
        crops = (crops - crops.mean(dim=1, keepdim=True)) / (crops.std(dim=1, keepdim=True) + 1e-7)
        target = log_mel(crops, layout)
        target = (target - target.mean(dim=(0, 1))) / (target.std(dim=(0, 1)) + 1e-3)
        loss = functional.mse_loss(head(model.feature_extractor(crops).transpose(1, 2)), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def _crop(waveform: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    first = int(torch.randint(len(waveform) - _CROP + 1, (), generator=generator))
    return torch.from_numpy(waveform[first : first + _CROP])
