"""A speech encoder to train, with its front end, as a part of the checkpoint that it came from."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pad.files import whole_folder
from pad.students.front_end import FrontEnd


@dataclass
class Student:
    """A speech encoder and all that its checkpoint holds.

    encoder: gives `last_hidden_state` [B, M, D] and, asked for `output_hidden_states`, `hidden_states` (one before the
    first layer and one after each, the last as `last_hidden_state`) for the inputs of `front_end`; layers: how many
    attention layers it has; convolutions: its modules before those layers.
    whole: the model that is saved, where the encoder is only a part of it: its parameter NAME is there called
    prefix + NAME. files: further files of the checkpoint by name.
    """

    encoder: PreTrainedModel
    front_end: FrontEnd
    layers: int
    convolutions: Collection[nn.Module]
    whole: PreTrainedModel | None = None
    prefix: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.whole is not None:
            # A trainer changes the settings of what it trains, such as use_cache.
            self.whole.config = copy.deepcopy(self.whole.config)

    def freeze_convolutions(self) -> None:
        """Leave what comes before the attention layers untrained."""
        for module in self.convolutions:
            module.requires_grad_(False)

    def save(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> Path:
        """Save a plain transformers checkpoint with its feature extractor; the folder appears whole or not at all.

        state_dict: the encoder's parameters, None for those that it has. All else in the checkpoint stays as it was.
        """
        folder = Path(folder)
        model = self.encoder if self.whole is None else self.whole
        if self.whole is not None:
            trained = self.encoder.state_dict() if state_dict is None else state_dict
            state_dict = self.whole.state_dict() | {self.prefix + name: value for name, value in trained.items()}
        with whole_folder(folder) as partial:
            model.save_pretrained(partial, state_dict=state_dict)
            self.front_end.extractor.save_pretrained(partial)
            for name, content in self.files.items():
                (partial / name).write_bytes(content)
        return folder


def encoder_in(model: Any) -> tuple[Any, str]:
    """(the encoder of a model with a decoder or a head, what the names of its parameters begin with but for itself)."""
    return (model.model.encoder, "model.") if hasattr(model, "model") else (model.encoder, "")


def run_layers(encoder: Any, hidden: Tensor, output_hidden_states: bool, **inputs) -> BaseModelOutput:
    """An encoder's layers, each with `inputs`, and its last norm, on states [B, M, D]; no layer is dropped."""
    states = [hidden]
    for layer in encoder.layers:
        hidden = layer(hidden, **inputs)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        states.append(hidden)
    states[-1] = encoder.layer_norm(hidden)
    return BaseModelOutput(states[-1], tuple(states) if output_hidden_states else None)
