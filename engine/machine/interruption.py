"""Signals that end a training after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Within this context SIGTERM and Ctrl-C only leave their name in `signal`; a second Ctrl-C stops at once.

    A signal that the process ignores stays ignored, as Ctrl-C in a background job of a shell.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS if _is_ours(number)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def terminable() -> Iterator[None]:
    """Within this context SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that worker processes are ended too."""
    ours = _is_ours(signal.SIGTERM) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_ours(number: int) -> bool:
    """Return whether this thread may handle a signal, and nobody has said to ignore it or handles it outside Python."""
    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread handle signals
    return main and signal.getsignal(number) not in (signal.SIG_IGN, None)
