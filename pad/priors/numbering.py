"""Which number each attention layer of a model has, as the `layers` of `record_significance` count them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from torch import nn


def kind_of(module: nn.Module) -> type:
    """The attention class that a module is of, or is derived from: a changed layer stays one of the layers."""
    named = [kind for kind in type(module).__mro__ if "Attention" in kind.__name__ and issubclass(kind, nn.Module)]
    return named[-1] if named else type(module)


class LayerNumbers:
    """The numbers of the attention layers of one kind, counted from 0 in the order in which the model holds them."""

    def __init__(self, model: nn.Module, kind: type):
        self._places: dict[int, list[int]] = {}  # by the id of a module: its number, or several if layers share it
        layers = [getattr(getattr(module, "config", None), "num_hidden_layers", 0) for module in model.modules()
                  if hasattr(getattr(module, "config", None), "num_hidden_groups")]  # fmt: skip
        # ALBERT: groups of layers share a module, so only the order in which they run tells them apart.
        self._in_order_of_runs = bool(layers)
        self.all: Sequence[int]
        if layers:
            self.all = range(max(layers))
            return
        places = _places(model, kind)
        numbers = _numbers([place for of_module in places.values() for place in of_module])
        self._places = {key: [numbers[place] for place in of_module] for key, of_module in places.items()}
        self.all = sorted(set(numbers.values()))

    def check(self, layers: Collection[int]) -> None:
        """Raise ValueError for a number that no layer has."""
        if not set(layers) <= set(self.all):
            first, last = self.all[0], self.all[-1]
            gaps = "" if len(self.all) == last - first + 1 else f" (of these {list(self.all)})"
            raise ValueError(f"layers: expected numbers from {first} to {last}{gaps}, got {sorted(layers)}")

    def of(self, module: nn.Module, runs: int, runs_of_module: int) -> int:
        """The number of a layer that runs after so many layers of this pass, among them runs of the same module."""
        if self._in_order_of_runs:
            return runs
        places = self._places[id(module)]
        if runs_of_module >= len(places):
            raise ValueError(
                f"layers: {type(module).__name__} runs as several layers of the model, which have no numbers; expected "
                "None, the mean over all"
            )
        return places[runs_of_module]


def _places(model: nn.Module, kind: type) -> dict[int, list[str]]:
    """By the id of each module of a kind: its paths up to the last number, one for each layer that it is.

    What follows the number tells no layers apart: PEFT keeps a second copy of a module there.
    """
    found: dict[int, dict[tuple[str, ...], str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kind):
            whole = re.match(r"(.*\.)?\d+(?=\.|$)", path)
            place = whole[0] if whole else path
            # A model that holds an encoder twice, under two names, has it once.
            found.setdefault(id(module), {}).setdefault(_digits(place), place)
    return {key: list(places.values()) for key, places in found.items()}


def _digits(place: str) -> tuple[str, ...]:
    return tuple(re.findall(r"(?:^|(?<=\.))\d+(?=\.|$)", place))


def _numbers(places: list[str]) -> dict[str, int]:
    """A number for each place: that in the list of layers if there is one, so that a layer of another kind counts."""
    distinct = list(dict.fromkeys(places))
    digits = [_digits(place) for place in distinct]
    if len(distinct) > 1 and len({len(row) for row in digits}) == 1 and len(set(digits)) == len(distinct):
        varying = [column for column in zip(*digits) if len(set(column)) > 1]
        if len(varying) == 1:
            return {place: int(number) for place, number in zip(distinct, varying[0])}
    return {place: number for number, place in enumerate(distinct)}
