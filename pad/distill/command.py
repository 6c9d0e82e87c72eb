"""`pad distill` as a command."""

from __future__ import annotations

from pad.distill.config import DistillConfig
from pad.settings import Command


def _run(config: DistillConfig) -> None:
    from torch import distributed

    from pad.distill.run import distill
    from pad.progress import say

    say(f"the distilled student is in {distill(config)}")
    # Threads of a group that is left to the end of the process can abort it.
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


DISTILL = Command("distill", DistillConfig, "train", _run)
