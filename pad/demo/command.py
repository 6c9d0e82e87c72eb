"""`pad demo` as a command."""

from __future__ import annotations

from pad.demo.config import DemoConfig
from pad.settings import Command


def _run(config: DemoConfig) -> None:
    from pad.demo.run import run_demo

    run_demo(config)


DEMO = Command("demo", DemoConfig, "demo", _run)
