"""The program's output, whose reader may be gone or whose disk may be full."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)  # nobody reads any more: a closed pipe, a terminal that has hung up


class Lasting:
    """A text stream that swallows what can no longer be written; `fault` is the first error in writing, if any.

    Letters that its encoding lacks become escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # a name of a file or class in a locale that lacks its letters
            encoding = self._stream.encoding
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._end(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _end(self, error: OSError) -> None:
        self.fault = self.fault or error
        with suppress(OSError):  # what the stream still holds, and will try to write at the end, goes nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting() -> Iterator[Lasting]:
    """Within this context writing to stdout and stderr never fails; yields stdout, whose `fault` says whether it did.

    A closed standard stream is opened on nothing: the next file to be opened would get its number, and what a library
    prints would be written into the file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Lasting(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    try:
        yield sys.stdout
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before
