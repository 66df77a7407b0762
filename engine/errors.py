"""The one exception that means "what the user gave us was wrong"."""


class UserError(Exception):
    """Wrong input from the user.

    The message is one line that says what was got, what was wanted and what to do. The command line
    prints it on stderr and exits with status 2; no traceback.
    """
