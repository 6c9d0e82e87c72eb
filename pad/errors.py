"""How a command ends early: by an error that the user can fix, or by a signal."""

import reprlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Input that `pad` cannot work with; the message names it, what was given and what is expected."""

    def __init__(self, message: str):
        # A DataLoader rebuilds a worker's error from the text of its traceback, which ends in the message.
        super().__init__(message.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].strip())


class Diverged(Exception):
    """A run whose loss or gradients are no longer finite; the message says where it stopped and what is left of it."""


class Stopped(Exception):
    """A signal stopped the run, which has saved a checkpoint."""

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}; --resume goes on from there")
        self.number = number


@contextmanager
def naming_output() -> Iterator[None]:
    """Let the system's refusal of what is printed in the context say so: it could be that of any file."""
    try:
        yield
    except BrokenPipeError:  # that nobody reads on is no error
        raise
    except OSError as error:
        raise OSError(f"standard output could not be written: {reason(error)}") from error


def missing_package(error: ImportError, extra: str) -> str:
    """That a Python package is missing, and the extra that brings it; `error` may be transformers' own words for it."""
    what = str(error).strip().splitlines()[0] + " Install it"
    if isinstance(error, ModuleNotFoundError):
        what = f"the Python package {error.name!r} is missing; install it"
    return f"{what} with: pip install '.[{extra}]'"


def reason(error: Exception) -> str:
    """What went wrong, for a message that has the path already: an OSError's text would repeat it."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def shown(value: object) -> str:
    """A value as messages quote it: at most 80 characters, however large or deep it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:200]) if isinstance(value, (str, bytes)) else reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
