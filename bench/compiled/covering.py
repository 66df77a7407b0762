"""A few of many cases that have all their traits."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Case = TypeVar("Case")


def covering(cases: Sequence[Case], traits: Callable[[Case], set[Hashable]]) -> list[Case]:
    """Return some of the cases, in their order, chosen greedily: each trait of any case is that of a returned one."""
    of = [traits(case) for case in cases]
    missing, chosen = set().union(*of), set()
    while missing:
        best = max(range(len(cases)), key=lambda index: len(of[index] & missing))
        chosen.add(best)
        missing -= of[best]
    return [case for index, case in enumerate(cases) if index in chosen]
