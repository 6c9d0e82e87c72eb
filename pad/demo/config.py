"""Settings of `pad demo`, and its recipes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pad.settings import LARGEST_SEED, Settings


@dataclass
class DemoConfig(Settings):
    """Run the whole method in minutes: distill a pretrained speech encoder on synthetic speech, and test it on real."""

    paths = ("student", "output", "recordings")

    quick: bool = False
    """a smaller run to check the installation: under 90 s on two cores"""
    student: str = ""
    """speech encoder of width 384: checkpoint folder or hub name; empty: Whisper tiny.en of the extra [demo]"""
    scratch: bool = False
    """distill a small encoder with random weights instead of a pretrained one"""
    seed: int = 0
    """random seed for the data, random weights and training"""
    output: str = "runs/demo"
    """folder for the report, the pictures and the student"""
    recordings: str = ""
    """folder of real recordings to test on (docs/training.md); empty: runs/recordings, if it is there"""

    def check(self) -> None:
        """Raise UserError that names a setting whose value makes no sense."""
        super().check()
        self.expect_from(("seed",), 0, LARGEST_SEED)
        self.expect("student", not (self.student and self.scratch), "no checkpoint together with --scratch")


@dataclass(frozen=True)
class DemoRecipe:
    """How the demo trains, chosen on the dev split. Sizes are numbers of utterances unless they say otherwise."""

    seed: int = 0
    free_sentences: int = 6000  # for distillation
    held_out_sentences: int = 200  # per split, for word hit rate and retrieval
    commands_per_intent: int = 30  # for training the probe
    held_out_per_intent: int = 10  # per split, for the probe
    most_recordings: int = 1000  # of each source of real speech
    warm_up_steps: int = 0  # on audio alone
    warm_up_utterances: int = 0
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 3e-4
    learning_rate_warm_up: int = 40  # steps
    freeze_convolutions: bool = True
    bfloat16: bool = True  # where the processor multiplies it
    preset: str = "early-slocal-soft"
    temperature: float = 0.1

    @classmethod
    def of(cls, scratch: bool, quick: bool, seed: int) -> DemoRecipe:
        """The recipe of a run; a quick one only checks that everything runs, and its scores are lower."""
        recipe = cls(seed=seed)
        if scratch:
            recipe = replace(
                recipe, commands_per_intent=90, held_out_per_intent=20, warm_up_steps=200, warm_up_utterances=1000,
                steps=450, batch_size=32, learning_rate=1e-3, learning_rate_warm_up=50, freeze_convolutions=False,
                bfloat16=False, preset="slocal-soft",
            )  # fmt: skip
        if quick:
            recipe = replace(
                recipe, free_sentences=1000, held_out_sentences=60, commands_per_intent=10, held_out_per_intent=5,
                most_recordings=20, warm_up_steps=recipe.warm_up_steps // 5, warm_up_utterances=300,
                steps=60 if scratch else 40, learning_rate_warm_up=10,
            )  # fmt: skip
        return recipe
