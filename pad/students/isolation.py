"""Convolutions between an encoder's layers that would carry padding into an utterance, or mix utterances."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def keep_utterances_apart(model: Any) -> None:
    """Let no padding into the convolutions of data2vec and Conformer, and no other utterance into their batch norms.

    transformers' own forward sets padding to zero before the first layer only; later ones make it other than zero.
    The changes are hooks: parameters keep their names.
    """
    if model.config.model_type == "data2vec-audio":
        convolutions = [layer.conv for layer in model.encoder.pos_conv_embed.layers]
    elif model.config.model_type == "wav2vec2-conformer":
        convolutions = [layer.conv_module.depthwise_conv for layer in model.encoder.layers]
    else:
        return
    padding = _Padding()
    model.encoder.register_forward_pre_hook(padding.note, with_kwargs=True)
    for convolution in convolutions:
        convolution.register_forward_pre_hook(padding.zero)
    for module in model.encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.register_forward_pre_hook(_keep_statistics)


class _Padding:
    """The padding of a batch; its methods are the hooks, so that a copy of the model has a copy of it."""

    def __init__(self) -> None:
        self.real: Tensor | None = None  # [B, 1, M]

    def note(self, encoder: nn.Module, arguments: tuple, named: dict) -> None:
        mask = named.get("attention_mask", arguments[1] if len(arguments) > 1 else None)
        self.real = None if mask is None else mask[:, None].bool()

    def zero(self, convolution: nn.Module, arguments: tuple) -> tuple | None:
        return None if self.real is None else (arguments[0].masked_fill(~self.real, 0.0), *arguments[1:])


def _keep_statistics(norm: nn.Module, arguments: tuple) -> None:
    norm.eval()
