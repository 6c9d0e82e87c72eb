"""How a command ends early: by an error that the user can fix, or by a signal."""

import signal


class UserError(ValueError):
    """Input that `pad` cannot work with; the message names it, what was given and what is expected."""

    def __init__(self, message: str):
        # A DataLoader rebuilds a worker's error from the text of its traceback, which ends in the message.
        super().__init__(message.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].strip())


class Stopped(Exception):
    """A signal stopped the run, which has saved a checkpoint."""

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}; --resume goes on from there")
        self.number = number
