"""The exceptions that the command line shows as one line."""


class UserError(Exception):
    """Wrong input from the user.

    The message is one line that says what was got, what was wanted and what to do. The command line
    prints it on stderr and exits with status 2; no traceback.
    """


class NotFiniteError(RuntimeError):
    """A loss became NaN or infinite; the message, one line, says which, when and what to try."""


class FailedModelsError(Exception):
    """Some models of a sweep could not be trained; the message names them, with reasons, on one line."""
