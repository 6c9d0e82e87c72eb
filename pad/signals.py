"""Signals that ask a run to end, noted until it has saved its state."""

from __future__ import annotations

import signal
import threading
from typing import Any


class NotedSignals:
    """Notes SIGTERM, SIGHUP and the first Ctrl-C as `number`, in the context or from `begin` to `restore`.

    The second Ctrl-C or SIGTERM does what it did before. A SIGHUP that is ignored, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """Take the signals over, where this thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            handler = signal.getsignal(number)
            # None: it is not Python's, and could not be given back.
            if handler is not None and (number != signal.SIGHUP or handler != signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give the signals back to those who had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> NotedSignals:
        self.begin()
        return self

    def __exit__(self, *error) -> None:
        self.restore()

    def _note(self, number, frame) -> None:
        self.number = number
        if number != signal.SIGHUP:  # both the system and a shell send it when a connection ends
            signal.signal(number, self._before[number])
