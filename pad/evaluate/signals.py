"""Signals that ask a run to end, noted until it has saved its state."""

from __future__ import annotations

import signal
import threading
from typing import Any


class NotedSignals:
    """In the context, the first SIGTERM, SIGINT or SIGHUP is kept as `number`; the same again does what it did before.

    Ignored ones stay ignored, as nohup wants.
    """

    def __init__(self):
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> NotedSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        self.number = number
        signal.signal(number, self._before[number])

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
