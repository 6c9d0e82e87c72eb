"""Benchmarks of pad_kernels: run them from the root of the repository."""

import sys
from pathlib import Path

# The repository's root goes to the end of the search path: an installed pad_kernels, which has its compiled
# library beside it, comes before the bare sources.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [path for path in sys.path if path not in ("", _ROOT)] + [_ROOT]
