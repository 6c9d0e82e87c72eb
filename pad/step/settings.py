"""The settings of an objective, which `pad distill` and `pad align` share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pad.settings import Settings

if TYPE_CHECKING:
    from pad.step.objective import Objective


@dataclass(kw_only=True)
class ObjectiveSettings(Settings):
    """Which objective: a preset, and what is changed of it."""

    preset: str = "early-slocal-soft"
    """training objective; docs/training.md lists all, the paper's are pad-glob, pad-tlocal and pad-slocal"""
    temperature: float | None = None
    """temperature of the soft alignment; 0: hard alignment; None: the value of the preset"""
    prior_layers: tuple[int, ...] = ()
    """student layers, counted from 0, whose attention gives the speech prior; empty: as in the preset, all in most"""
    prior_layer_weights: tuple[float, ...] = ()
    """weight of each of prior_layers in the speech prior; empty: all the same"""
    anchors: Literal["topk", "peaks", "stride"] | None = None
    """middles of spans: highest prior (topk), spread out (peaks), evenly spaced (stride); None: as in the preset"""
    prior_exponent: float = 1.0
    """raise the speech prior to this power: below 1 it is flatter"""
    pooling_prior: bool = True
    """weigh the frames of a span by the speech prior; if not, the prior only chooses the anchors"""
    text_prior: bool | None = None
    """weigh the tokens by the text prior; None: as in the preset"""

    def check(self) -> None:
        """Raise UserError that names a setting whose value makes no sense."""
        super().check()
        self.expect_temperature(self.temperature)
        self.expect("prior_layers", all(layer >= 0 for layer in self.prior_layers), "layer numbers, counted from 0")
        self.expect("prior_layers", len(set(self.prior_layers)) == len(self.prior_layers), "each layer once")
        self.expect(
            "prior_layer_weights",
            all(weight > 0 for weight in self.prior_layer_weights) and math.isfinite(sum(self.prior_layer_weights)),
            "positive, finite numbers",
        )
        self.expect("prior_exponent", 0 < self.prior_exponent <= 10, "a number above 0, at most 10")

    def objective(self) -> Objective:
        """The objective that these settings stand for; raises UserError for an unknown preset, or a change without
        effect on it."""
        from pad.step.objective import objective  # imports torch

        return objective(
            self.preset,
            temperature=self.temperature,
            prior_layers=self.prior_layers,
            prior_layer_weights=self.prior_layer_weights,
            anchors=self.anchors,
            text_prior=self.text_prior,
            prior_exponent=self.prior_exponent,
            pooling_prior=self.pooling_prior,
        )
