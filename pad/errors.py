"""How a command ends early: by a mistake that is the user's to mend, or by a signal."""

import signal


class UserError(ValueError):
    """Input that `pad` cannot work with; the message names it, says what came and what is expected."""

    def __init__(self, message: str):
        # A DataLoader builds the error of a worker process anew, from a traceback that ends in its message.
        super().__init__(message.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].strip())


class Stopped(Exception):
    """A run that was told to stop by a signal and has saved where it was."""

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}; --resume goes on from there")
        self.number = number
