"""The former name of `pad.step.teacher`, kept for one version."""

import warnings

from pad.step.teacher import Teacher
from pad.tokenization import check_tokens, tokenize

__all__ = ["Teacher", "check_tokens", "tokenize"]

warnings.warn("pad.teacher has moved to pad.step.teacher", DeprecationWarning, stacklevel=2)
