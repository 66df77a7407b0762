"""Exceptions: what the command line shows as one line, and image files that cannot be used."""

import re
from collections.abc import Sequence

SHOWN_FILES = 3
FORMULAS = ("=", "+", "-", "@")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line, or its type if there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, as some go on for paragraphs; its type if there is no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def shown(text: str) -> str:
    """Return text in one line that a terminal shows and does not obey, whatever names of files are in it.

    Control characters, line ends, marks of the direction of writing, and bytes that are not text, become escapes.
    """
    text = CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.encode("utf-8", "backslashreplace").decode()


def some_of(files: Sequence[str]) -> str:
    """Return the first three names of several, and how many more there are."""
    more = f" and {len(files) - SHOWN_FILES:,} more" if len(files) > SHOWN_FILES else ""
    return ", ".join(files[:SHOWN_FILES]) + more


def spreadsheet_cell(text: str) -> str:
    """Return text for a cell of a CSV file, `shown`, with an apostrophe before what a spreadsheet would compute."""
    text = shown(text)
    return f"'{text}" if text.startswith(FORMULAS) else text


class UserError(Exception):
    """Wrong input from the user.

    The message is one line that says what was got, what was wanted and what to do. The command line
    prints it on stderr and exits with status 2; no traceback.
    """


class Unsupported(ValueError):
    """An image file of a kind that is not read; the message is one line."""


class Unavailable(Unsupported):
    """An image file that this machine cannot read now, for want of a package or of memory; the message is one line."""


class RunError(Exception):
    """A run ended without an error in its input; the message, one line, says what happened and what to do.

    The command line prints it on stderr and exits with status 1; no traceback.
    """


class NotFiniteError(RunError):
    """A loss, or all gradients, became NaN or infinite; the message says which, when and what to try."""

    ADVICE = "try a smaller --lr"


class FailedModelsError(RunError):
    """Some models of a sweep could not be trained; the message names them, with reasons."""


class StorageError(RunError):
    """A file of the run cannot be written; an earlier file in its place is intact."""


class Interrupted(RunError):
    """The run was interrupted by a signal; the message says at which step, and how to resume."""


class OutOfMemoryError(RunError):
    """A batch does not fit into memory; the message says which batch size does."""
