"""A choice of cases that covers the traits of all cases."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Case = TypeVar("Case")


def covering(cases: Sequence[Case], traits: Callable[[Case], set[Hashable]]) -> list[Case]:
    """Return a greedy choice of the cases, in their order, that has every trait of all cases."""
    of = [traits(case) for case in cases]
    missing, chosen = set().union(*of), set()
    while missing:
        best = max(range(len(cases)), key=lambda index: len(of[index] & missing))
        chosen.add(best)
        missing -= of[best]
    return [case for index, case in enumerate(cases) if index in chosen]
