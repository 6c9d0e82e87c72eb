"""Settings of `pad demo`, and its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from pad.settings import LARGEST_SEED, Settings


@dataclass
class DemoConfig(Settings):
    """Run the whole method on synthetic speech in minutes, without downloads: a student against a control."""

    paths = ("output", "recordings")

    quick: bool = False
    """a smaller run to check the installation: under 90 s on two cores"""
    seed: int = 0
    """random seed for the data, the initial weights and training"""
    output: str = "runs/demo"
    """folder for the report, the pictures and the student"""
    recordings: str | None = None
    """folder of real recordings with word times to test on too; python -m pad.demo.recordings FOLDER fetches one"""

    def check(self) -> None:
        """Raise UserError that names a setting whose value makes no sense."""
        super().check()
        self.expect_from(("seed",), 0, LARGEST_SEED)


@dataclass(frozen=True)
class DemoRecipe:
    """How the demo trains, chosen on the dev split. Sizes are numbers of utterances unless they say otherwise."""

    seed: int = 0
    free_sentences: int = 6000  # for distillation
    held_out_sentences: int = 200  # per split, for the word hit rate
    commands_per_intent: int = 90  # for training the probe
    held_out_per_intent: int = 20  # per split, for the probe
    warm_up_steps: int = 200
    warm_up_utterances: int = 1000
    steps: int = 450
    batch_size: int = 32
    learning_rate: float = 1e-3
    learning_rate_warm_up: int = 50
    preset: str = "slocal-soft"
    temperature: float = 0.1

    @classmethod
    def quick(cls, seed: int) -> DemoRecipe:
        """A small recipe that checks that everything runs; its scores are lower."""
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
