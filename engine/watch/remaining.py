"""How long a run of several networks still takes, estimated from the time that it took so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping


class Remaining:
    """Estimates the seconds that are left of a run, of which networks are trained one after another.

    The rest of the current network is assumed to go at the network's pace so far; the networks that follow at the mean
    pace of this run per unit of work.

    Args:
        work: the work of each network by name, in any unit, such as multiply-adds of its training.
        ended: the names of those that an earlier process has trained.
        again: how many times the whole work is done once more afterwards, such as for other seeds.
    """

    def __init__(
        self,
        work: Mapping[str, float],
        ended: Iterable[str] = (),
        again: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work, self.again, self.clock = dict(work), again, clock
        self._ended = set(ended)
        self._spent = self._worked = 0.0  # of the networks that ended: seconds and work
        self._name, self._begun, self._from = "", clock(), 0.0

    def begin(self, name: str, share: float = 0.0) -> None:
        """Say that the training of a network begins now, of which an earlier process has done a share, from 0 to 1.

        The network that was begun before is done, and tested.
        """
        now = self.clock()
        if self._name:
            self._ended.add(self._name)
            self._spent += now - self._begun
            self._worked += (1 - self._from) * self.work.get(self._name, 0.0)
        self._name, self._begun, self._from = name, now, share

    def left(self, share: float) -> float | None:
        """Return the seconds left of the run when a share of the current network's work is done; None if unknown."""
        done = share - self._from
        if done <= 0 or not self._name:
            return None
        own, spent = self.work.get(self._name, 0.0), self.clock() - self._begun
        rest = spent * (1 - share) / done
        worked = self._worked + done * own
        if not worked:
            return rest
        pace, whole = (self._spent + spent) / worked, sum(self.work.values())
        others = whole - own - sum(self.work.get(name, 0.0) for name in self._ended)
        return rest + pace * (max(others, 0.0) + self.again * whole)
