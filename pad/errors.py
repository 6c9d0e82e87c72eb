"""The one error that is the user's to mend: the command line shows its message alone and ends with code 2."""


class UserError(ValueError):
    """Input that `pad` cannot work with; the message names it, says what came and what is expected."""
