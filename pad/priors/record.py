"""What the attention layers record during one forward pass."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from numbers import Integral

import torch
from torch import Tensor, nn

from pad.priors.numbering import LayerNumbers, kind_of

# The open records, the last one in use, by thread and by the id of a module; threads may share a model.
records: dict[tuple[int, int], list[Record]] = {}


def record_of(module: nn.Module) -> Record | None:
    """The record that is open for a module in this thread."""
    found = records.get((threading.get_ident(), id(module)))
    return found[-1] if found else None


def is_running() -> bool:
    """Whether a model that is recorded in this thread is running."""
    thread = threading.get_ident()
    return any(record.running for (owner, _), found in tuple(records.items()) if owner == thread for record in found)


def in_backward() -> bool:
    """Whether gradient checkpointing is running layers a second time."""
    return torch._C._current_graph_task_id() != -1


class Record:
    """The priors of the layers of one forward pass; a later pass in the same context replaces them."""

    def __init__(
        self, model: nn.Module, mask: Tensor | None, layers: Collection[int] | Mapping[int, float] | None = None
    ):
        self.mask = None if mask is None else checked_mask(mask)
        self.weights = checked_weights(layers) if isinstance(layers, Mapping) else None
        self.layers = None if layers is None else checked_layers(layers)
        self.length: int | None = None  # positions that the layers attend to
        self.open = True  # whether its context is
        self.runs_again: bool | None = None  # whether backward runs layers again, None while no pass has told
        self._model = model
        self._numbers: dict[type, LayerNumbers] = {}  # by the kind of attention
        self._trained = False
        # Attention modules in the order in which they ran, and in which they reported.
        self._ran: list[nn.Module] = []
        self._reported: list[nn.Module] = []
        # With the number of the layer, where `layers` says which to record.
        self._layers: list[tuple[int | None, Callable[[Tensor | None], Tensor]]] = []
        self._priors: list[tuple[int | None, Tensor]] = []
        self._asked: Tensor | None = None  # the mask that the priors were asked for, where none was given before
        self.running = 0  # passes of the model or an encoder in it, one within the other

    @torch.compiler.disable
    def begin_pass(self, encoder: nn.Module) -> None:
        """Forget the layers recorded so far if this is a new pass: of the whole model, or of an encoder that has run.

        Other encoders of one pass come one after the other.
        """
        before = {id(module) for module in (*self._ran, *self._reported)}
        if encoder is self._model or not before or any(id(module) in before for module in encoder.modules()):
            self._layers, self._priors, self._asked, self._trained = [], [], None, encoder.training
            self._ran, self._reported, self.length = [], [], None

    @torch.compiler.disable
    def note_run(self, attention: nn.Module) -> None:
        """An attention module is about to run."""
        self._ran.append(attention)

    @torch.compiler.disable
    def note_pass(self, runs_again: bool | None) -> None:
        """Whether backward will run a layer of this pass again, None if unknown; once it does, it does."""
        if runs_again is not None and not in_backward():
            self.runs_again = runs_again or bool(self.runs_again)

    @torch.compiler.disable
    @torch.no_grad()
    def add(self, attention: nn.Module, length: int, layer: Callable[[Tensor | None], Tensor]) -> None:
        """Record a layer that attends to `length` positions.

        layer: gives its prior of the mask; called at once if the mask is known.
        """
        if in_backward():
            return
        self.length = length
        number = None if self.layers is None else self._number(attention, self.layers)
        self._reported.append(attention)
        if self.layers is not None and number not in self.layers:
            return
        if self.mask is None:
            self._layers.append((number, layer))
        else:
            self._check_length(self.mask)
            self._priors.append((number, layer(self.mask)))

    def _number(self, attention: nn.Module, layers: Collection[int]) -> int:
        kind = kind_of(attention)
        if kind not in self._numbers:
            numbers = LayerNumbers(self._model, kind)
            numbers.check(layers)
            self._numbers[kind] = numbers
        of_kind = [module for module in self._reported if kind_of(module) is kind]
        return self._numbers[kind].of(attention, len(of_kind), sum(module is attention for module in of_kind))

    @torch.no_grad()
    def prior(self, mask: Tensor | None = None) -> Tensor:
        """Prior [B, T] float32, the mean over the layers that ran, weighed where `layers` gives weights.

        It sums to 1 over the real positions.
        mask: [B, T] bool or 0/1, the positions that count as rows and as columns; None: that given to
        `record_significance`, or to an earlier call, or all. Uniform where layerdrop left out every layer and there is
        a mask. Raises ValueError if no layer was recorded, or another mask was used.
        """
        priors = self._collected(mask)
        if priors:
            return self._mean(priors)
        if self._all_dropped():
            known = self.mask if mask is None else checked_mask(mask)
            if known is None:
                raise ValueError(
                    "mask: layerdrop left out every layer, so the prior is uniform over a mask, which is missing"
                )
            real = known.float()
            return real / real.sum(dim=1, keepdim=True).clamp(min=1)
        if self._ran:
            raise ValueError(
                f"model: attention layers of {type(self._model).__name__} ran, but none was recorded: they "
                "do not attend through transformers' attention interface"
            )
        raise ValueError(
            "no attention layer was recorded: run the model in the context and in the same thread, then ask for the "
            "prior; of contexts within one another, the innermost records"
        )

    @torch.no_grad()
    def layer_priors(self, mask: Tensor | None = None) -> Tensor:
        """Prior of each layer that ran [L, B, T] float32, in the order of the layers, not weighed.

        mask: as for `prior`. Raises ValueError if no layer was recorded, or another mask was used.
        """
        priors = self._collected(mask)
        if not priors:
            raise ValueError("no attention layer was recorded, so there is no prior of each layer")
        return torch.stack([prior for _, prior in priors])

    def _mean(self, priors: list[tuple[int | None, Tensor]]) -> Tensor:
        if self.weights is None:
            return torch.stack([prior for _, prior in priors]).mean(dim=0)
        total = sum(self.weights[number] for number, _ in priors)
        return torch.stack([self.weights[number] / total * prior for number, prior in priors]).sum(dim=0)

    def _collected(self, mask: Tensor | None) -> list[tuple[int | None, Tensor]]:
        """The prior of each layer that ran, with the mask that was given before or is given now."""
        if self.mask is not None and mask is not None and not (isinstance(mask, Tensor) and _same(mask, self.mask)):
            raise ValueError("mask: differs from the mask given to record_significance; give it once")
        given = None if mask is None else checked_mask(mask)
        if self._layers:
            if given is not None:
                self._check_length(given)
            self._asked = given
            self._priors = [(number, layer(given)) for number, layer in self._layers]
            self._layers = []
        elif self._priors and self.mask is None and given is not None and not _same(given, self._asked):
            raise ValueError(
                "mask: differs from that of an earlier call of prior or layer_priors, which may have had none; what "
                "the layers kept is gone by then, so give all calls the same"
            )
        if self._priors:
            self._check_whole()
        return self._priors

    def _check_length(self, mask: Tensor) -> None:
        """Raise ValueError for a mask of other positions than the layers attend to."""
        if mask.shape[1] == self.length:
            return
        configs = (getattr(module, "config", None) for module in self._model.modules())
        adapter = any(getattr(config, "add_adapter", False) for config in configs)
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, expected [B, {self.length}], the positions that the layers attend to"
            + ("; an adapter (add_adapter) makes others of them, which no prior would fit. Use a model without adapter"
               if adapter else "")
        )  # fmt: skip

    def _check_whole(self) -> None:
        """Raise ValueError if a layer ran unrecorded, or one that was asked for did not run and was not dropped."""
        kinds = {kind_of(module) for module in self._reported}
        ran = sum(kind_of(module) in kinds for module in self._ran)
        if ran > len(self._reported):
            raise ValueError(
                f"model: {ran} attention layers of {type(self._model).__name__} ran, but {len(self._reported)} were "
                "recorded: the others do not attend through transformers' attention interface"
            )
        reports, runs = (Counter(map(id, modules)) for modules in (self._reported, self._ran))
        if any(0 < runs[module] < count for module, count in reports.items()):
            raise ValueError(
                f"model: an attention layer of {type(self._model).__name__} attends in several parts, each to its own "
                "positions; its significance cannot be recorded. Use an objective without that prior"
            )
        missing = sorted(set(self.layers or ()) - {number for number, _ in self._priors})
        if missing and not self._may_drop():
            raise ValueError(f"layers: no attention was recorded of {missing}; expected layers that ran in the context")

    def _all_dropped(self) -> bool:
        """Whether layerdrop has left out every layer, or every one of those asked for, in the last pass."""
        return self._may_drop() and not (self._ran and self.length is None)

    def _may_drop(self) -> bool:
        """Whether the last pass was one of training with layerdrop."""
        modules = list(self._model.modules())
        # A config, or the module itself: some copy the rate, which may have been changed since.
        owners = [*modules, *(config for module in modules if (config := getattr(module, "config", None)))]
        names = ("layerdrop", "encoder_layerdrop")
        return self._trained and any(getattr(owner, name, 0.0) for owner in owners for name in names)


def checked_layers(layers: Collection[int]) -> Collection[int]:
    """The numbers of layers, or their weights by number; raises ValueError for what is none."""
    numbers = list(layers) if isinstance(layers, Collection) and not isinstance(layers, (str, Tensor)) else []
    if not numbers or any(isinstance(number, bool) or not isinstance(number, Integral) for number in numbers):
        raise ValueError(
            f"layers: got {layers!r}, expected at least one number of a layer, or a weight for each: (0, 1), {{0: 0.8}}"
        )
    return layers


def checked_weights(weights: Mapping[int, float]) -> dict[int | None, float]:
    """The weights of layers; raises ValueError for one that is not positive and finite, and for none at all."""
    try:
        numbers: dict[int | None, float] = {layer: float(weight) for layer, weight in weights.items()}
    except (TypeError, ValueError, OverflowError):
        numbers = {}
    if not numbers or min(numbers.values()) <= 0 or not math.isfinite(sum(numbers.values())):
        raise ValueError(f"layers: got weights {dict(weights)}, expected at least one, all positive and finite")
    return numbers


def checked_mask(mask: Tensor) -> Tensor:
    """The mask as bool [B, T]; raises ValueError for another shape or dtype, and for one that says padding."""
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask: got {got}, expected bool or 0/1 integers, 1 at the positions that count")
    if mask.dim() != 2:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected [B, T], 1 at the positions that count")
    if mask.device.type == "cpu" and mask.dtype != torch.bool and ((mask != 0) & (mask != 1)).any():
        raise ValueError(
            f"mask: got values from {mask.min()} to {mask.max()}, expected 0 and 1, 1 at the positions that count"
        )
    mask = mask.bool()
    if mask.device.type == "cpu" and _says_padding(mask):
        raise ValueError(
            "mask: seems to be True at the padding: rows end in True, and the longest has none; expected True at the "
            "positions that count (~mask)"
        )
    return mask


def _same(mask: Tensor, other: Tensor | None) -> bool:
    return other is not None and mask.shape == other.shape and torch.equal(mask.bool(), other)


def _says_padding(mask: Tensor) -> bool:
    """Whether rows are False and then True, with one False throughout: what padding on the right looks like.

    Of padding on the left, the longest row would be True throughout.
    """
    counts = mask.sum(dim=1)
    if not mask.any() or (counts > 0).all() or (counts == mask.shape[1]).any():
        return False
    return not (mask[:, :-1] & ~mask[:, 1:]).any()
