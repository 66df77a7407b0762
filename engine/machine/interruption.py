"""Signals that end a training after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ends of a session, warnings of a batch system before a job's end, and a limit of CPU time. Windows has fewer signals.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(signal.Signals[name] for name in NAMES if name in signal.Signals.__members__)


class Interruption:
    """Within this context the signals of `SIGNALS` only leave their name in `signal`; a second Ctrl-C stops at once.

    A signal that the process ignores stays ignored, as Ctrl-C in a background job of a shell.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, object] = {}
        self._ctrl_c = 0

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS if _is_ours(number)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._ctrl_c += number == signal.SIGINT
        if self._ctrl_c > 1:
            raise KeyboardInterrupt
        self.signal = self.signal or ("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)


@contextmanager
def terminable() -> Iterator[None]:
    """Within this context each of `SIGNALS` raises KeyboardInterrupt as Ctrl-C does, so that workers are ended too.

    Only the first signal raises; later ones, such as a batch system's repeats, are ignored while the program ends.
    """
    ours = [number for number in SIGNALS if _is_ours(number) and signal.getsignal(number) is signal.SIG_DFL]

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in ours:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def ignore() -> None:
    """Ignore all of `SIGNALS` in this process, a worker, which its parent ends: they are sent to whole groups."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _is_ours(number: int) -> bool:
    """Return whether this thread may handle a signal, and nobody has said to ignore it or handles it outside Python."""
    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread handle signals
    return main and signal.getsignal(number) not in (signal.SIG_IGN, None)
