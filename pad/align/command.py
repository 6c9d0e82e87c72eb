"""`pad align` as a command."""

from __future__ import annotations

from pad.align.config import AlignConfig
from pad.settings import Command


def _run(config: AlignConfig) -> None:
    from pad.align.run import align_one

    print("written: " + ", ".join(str(path) for path in align_one(config)))


ALIGN = Command("align", AlignConfig, "demo", _run)
