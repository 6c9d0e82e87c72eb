"""The former name of `pad.step.objective`, kept for one version."""

import warnings

from pad.step.objective import PRESETS, Objective, objective

__all__ = ["PRESETS", "Objective", "objective"]

warnings.warn("pad.objective has moved to pad.step.objective", DeprecationWarning, stacklevel=2)
