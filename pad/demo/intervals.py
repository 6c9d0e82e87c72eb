"""Rates of hits with bootstrap intervals over utterances and, where there are several, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_LEVEL = 0.95


@dataclass(frozen=True)
class Counts:
    """Of each utterance [U]: how many trials it holds, how many of them hit, and how many would by chance."""

    hits: np.ndarray
    trials: np.ndarray
    chance: np.ndarray

    @property
    def rate(self) -> float:
        """Share of all trials that hit."""
        return float(self.hits.sum() / max(self.trials.sum(), 1))

    @property
    def chance_rate(self) -> float:
        """Share of all trials that would hit by chance."""
        return float(self.chance.sum() / max(self.trials.sum(), 1))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % interval of the rate over utterances."""
        return interval([self], seed=seed)


def interval(counts: Sequence[Counts], baseline: Sequence[Counts] = (), seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the rate over runs and utterances, or of its difference from a baseline.

    counts: one for each run (seed), all of the same utterances. baseline: the paired runs, of the same seeds in the
    same order and of the same utterances. Runs and utterances are drawn with replacement, independently; a pair is
    drawn together. Raises ValueError for runs that do not fit together.
    """
    if not counts or len(baseline) not in (0, len(counts)):
        raise ValueError(f"baseline: expected a run for each of {len(counts)}, got {len(baseline)}")
    trials = np.stack([run.trials for run in (*counts, *baseline)])
    if (trials != trials[0]).any():
        raise ValueError("counts: expected runs on the same utterances")
    hits = np.stack([run.hits for run in counts])
    if baseline:
        hits = hits - np.stack([run.hits for run in baseline])
    generator = np.random.default_rng(seed)
    runs, utterances = hits.shape
    drawn_runs = generator.multinomial(runs, np.full(runs, 1 / runs), RESAMPLES) / runs
    drawn = generator.multinomial(utterances, np.full(utterances, 1 / utterances), RESAMPLES)
    rates = np.einsum("rs,su,ru->r", drawn_runs, hits, drawn, optimize=True) / np.maximum(drawn @ trials[0], 1)
    low, high = np.quantile(rates, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return float(low), float(high)
