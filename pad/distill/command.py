"""`pad distill` as a command."""

from __future__ import annotations

from pad.distill.config import DistillConfig
from pad.settings import Command


def _run(config: DistillConfig) -> None:
    from pad.distill.run import distill
    from pad.progress import say

    say(f"the distilled student is in {distill(config)}")


DISTILL = Command("distill", DistillConfig, "train", _run)
