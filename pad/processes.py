"""The processes of a run: which is the first, and how a command starts one."""

from __future__ import annotations

import os
import sys
from multiprocessing.queues import Queue
from pathlib import Path

from pad.errors import UserError, shown


def first_process() -> bool:
    """Whether this is the one of several training processes that writes files and prints; a process alone is.

    Raises UserError where the environment has no number for RANK or WORLD_SIZE.
    """
    return process_count() <= 1 or _number_in_environment("RANK", 0) == 0


def process_count() -> int:
    """How many training processes a launcher says there are, 1 if it says nothing; raises UserError for no number."""
    return _number_in_environment("WORLD_SIZE", 1)


def _number_in_environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    try:
        return int(value) if value else default
    except ValueError:
        raise UserError(f"{name}: expected a whole number in the environment, got {shown(value)}") from None


def end_if_stuck() -> None:
    """In a worker of a DataLoader: end it where it cannot send a batch; the loader would wait for that without end."""
    # Of the threads that send, the one that hands out open files and the one of the queue.
    sys.excepthook = lambda kind, error, trace: _end_worker(error)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: BaseException, batch: object = None) -> None:
    print(f"a worker process could not send a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module as `python -m` does, on the path of this process.

    `python -m` would put the working folder first, whose files may have the names of modules; -P, which keeps it out,
    is of Python 3.11.
    """
    package = str(Path(__file__).parent.parent)
    path = [place for place in sys.path if place]
    if package not in path:
        path.append(package)
    code = f"import sys; sys.path[:] = {ascii(path)}; import runpy; "
    code += f"runpy.run_module({ascii(module)}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code, *arguments]
