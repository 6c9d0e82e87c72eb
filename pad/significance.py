"""The former name of `pad.priors.recorder`, kept for one version."""

import warnings

from pad.priors.recorder import Record, record_significance

__all__ = ["Record", "record_significance"]

warnings.warn("pad.significance has moved: from pad import record_significance", DeprecationWarning, stacklevel=2)
