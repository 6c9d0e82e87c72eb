"""Settings of the demo. They were chosen on the dev split."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoConfig:
    """Sizes are numbers of utterances unless they say otherwise."""

    seed: int = 0
    free_sentences: int = 6000  # what the student is distilled on
    held_out_sentences: int = 200  # per split, for the word hit rate
    commands_per_intent: int = 60  # what the probe is trained on
    held_out_per_intent: int = 20  # per split, for the probe
    warm_up_steps: int = 200
    warm_up_utterances: int = 1000
    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-3
    learning_rate_warm_up: int = 50
    preset: str = "tlocal-soft"
    temperature: float = 0.1

    @classmethod
    def quick(cls, seed: int) -> DemoConfig:
        """Small enough for a test of the machinery; its scores are lower."""
        return cls(
            seed=seed,
            free_sentences=1000,
            held_out_sentences=60,
            commands_per_intent=10,
            held_out_per_intent=5,
            warm_up_steps=40,
            warm_up_utterances=300,
            steps=60,
            learning_rate_warm_up=10,
        )
