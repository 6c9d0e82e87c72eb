"""What the attention layers record during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

# The open record of each module, by the module's id; models may share a config.
records: dict[int, Record] = {}


class Record:
    """The priors of the layers of one forward pass; a later pass in the same context replaces them."""

    def __init__(self, model: nn.Module, mask: Tensor | None, layers: Collection[int] | None = None):
        self.mask = None if mask is None else mask.bool()
        self.layers = layers
        self._model = model
        self._numbers: dict[int, int] = {}  # by the id of an attention module
        self._trained = False
        self._layers: list[Callable[[Tensor | None], Tensor]] = []
        self._priors: list[Tensor] = []

    def clear(self) -> None:
        """Forget the layers recorded so far."""
        self._layers, self._priors, self._trained = [], [], self._model.training

    @torch.no_grad()
    def add(self, attention: nn.Module, layer: Callable[[Tensor | None], Tensor]) -> None:
        """Record a layer as a function from the mask to its prior, which is called at once if the mask is known."""
        if torch._C._current_graph_task_id() != -1:
            return  # gradient checkpointing runs the layer a second time
        if self.layers is not None and self._number(attention, self.layers) not in self.layers:
            return
        if self.mask is None:
            self._layers.append(layer)
        else:
            self._priors.append(layer(self.mask))

    def _number(self, attention: nn.Module, layers: Collection[int]) -> int:
        if id(attention) not in self._numbers:
            alike = [module for module in self._model.modules() if type(module) is type(attention)]
            self._numbers = {id(module): number for number, module in enumerate(alike)}
            if any(number not in range(len(alike)) for number in layers):
                raise ValueError(f"layers: expected numbers from 0 to {len(alike) - 1}, got {sorted(layers)}")
        return self._numbers[id(attention)]

    @torch.no_grad()
    def prior(self, mask: Tensor | None = None) -> Tensor:
        """Prior [B, T] float32, the mean over the layers that ran; sums to 1 over the real positions.

        mask: [B, T] bool or 0/1, the positions that count as rows and as columns; None: that given to
        `record_significance`, or all. Uniform where layerdrop left out every layer. Raises ValueError if no layer
        was recorded, or another mask was used.
        """
        if self.mask is not None and mask is not None and mask is not self.mask:
            if mask.shape != self.mask.shape or not torch.equal(mask.bool(), self.mask):
                raise ValueError("mask: differs from the mask given to record_significance; give it once")
        if self._layers:
            mask = None if mask is None else mask.bool()
            self._priors = [layer(mask) for layer in self._layers]
            self._layers = []
        known = self.mask if mask is None else mask
        if not self._priors and self._trained and known is not None:
            real = known.float()
            return real / real.sum(dim=1, keepdim=True).clamp(min=1)
        if not self._priors:
            raise ValueError("no attention layer was recorded: run the model in the context, then ask for the prior")
        return torch.stack(self._priors).mean(dim=0)
