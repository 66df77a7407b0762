"""Grids of test cases: the usual run takes a covering of them, `-m slow` what is left.

Most faults show with two values together (Kuhn, Wallace and Gallo, "Software fault interactions", IEEE TSE 2004): any
two values of two axes that occur together in the grid occur together in a case of the covering. Where
a case takes long, a covering of strength 1 has each value of each axis once.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product

import pytest

from bench.compiled.covering import covering


def grid(where: Callable[..., bool] = lambda **_: True, strength: int = 2, **axes: Iterable) -> pytest.MarkDecorator:
    """Return the mark that runs a test on every combination of the axes, those beyond a covering as `slow`.

    In the covering, any `strength` values of as many axes meet that do so in the grid; those marked slow stay so.
    An axis holds the values, or `pytest.param`s of one, of the argument it is called by, or maps an id to each.
    `where`, called with one value of each axis, says which combinations there are.
    """
    rows = {}
    for row in product(*map(_params, axes.values())):
        names, values, marks = zip(*row, strict=True)
        if where(**dict(zip(axes, values, strict=True))):
            rows[names] = values, sum(marks, ())
    covered = set(covering_of([names for names, (_, marks) in rows.items() if not _slow(marks)], strength))
    return pytest.mark.parametrize(
        tuple(axes),
        [
            pytest.param(*values, id="-".join(names), marks=marks if names in covered else (*marks, pytest.mark.slow))
            for names, (values, marks) in rows.items()
        ],
    )


def covering_of(rows: list[tuple], strength: int) -> list[tuple]:
    """Return some of the rows: any `strength` values that stand in as many columns of a row do so in one of those."""
    if strength == 1:  # many rows add as much: drawn, they have the values of the shorter axes by turns
        rows = random.Random(0).sample(rows, len(rows))
    return covering(rows, lambda row: set(combinations(enumerate(row), strength)))


def usual(cases: Iterable[str], *names: str) -> list:
    """Return all cases as parameters, those that are not named as `slow`."""
    cases = list(cases)
    assert set(names) <= set(cases)
    return [case if case in names else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def _slow(marks: tuple) -> bool:
    return any(mark.name == "slow" for mark in marks)


def _params(axis: Iterable) -> Iterator[tuple[str, object, tuple]]:
    """Yield the id, the value and the marks of each value of an axis."""
    for name, value in axis.items() if isinstance(axis, dict) else ((None, value) for value in axis):
        marks = ()
        if hasattr(value, "marks"):  # a pytest.param
            marks, (value,) = tuple(value.marks), value.values
        yield name or getattr(value, "__name__", str(value).removeprefix("torch.")), value, marks
