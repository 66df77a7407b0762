"""Grids of test cases: the usual run takes a pairwise covering of them, `-m slow` what is left.

Most faults show with two values together (Kuhn, Wallace and Gallo, "Software fault interactions", IEEE TSE 2004): any
two values of two axes that occur together in the grid occur together in a case of the covering.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product

import pytest

from bench.compiled.covering import covering


def grid(where: Callable[..., bool] = lambda **_: True, **axes: Iterable) -> pytest.MarkDecorator:
    """Return the mark that runs a test on every combination of the axes, those beyond a pairwise covering as `slow`.

    An axis holds the values, or `pytest.param`s of one, of the argument it is called by, or maps an id to each.
    `where`, called with one value of each axis, says which combinations there are.
    """
    rows = {}
    for row in product(*map(_params, axes.values())):
        names, values, marks = zip(*row, strict=True)
        if where(**dict(zip(axes, values, strict=True))):
            rows[names] = values, sum(marks, ())
    usual = set(pairwise(list(rows)))
    return pytest.mark.parametrize(
        tuple(axes),
        [
            pytest.param(*values, id="-".join(names), marks=marks if names in usual else (*marks, pytest.mark.slow))
            for names, (values, marks) in rows.items()
        ],
    )


def pairwise(rows: list[tuple]) -> list[tuple]:
    """Return some of the rows: any two values that stand in two columns of a row do so in one of those."""
    return covering(rows, lambda row: set(combinations(enumerate(row), 2)))


def _params(axis: Iterable) -> Iterator[tuple[str, object, tuple]]:
    """Yield the id, the value and the marks of each value of an axis."""
    for name, value in axis.items() if isinstance(axis, dict) else ((None, value) for value in axis):
        marks = ()
        if hasattr(value, "marks"):  # a pytest.param
            marks, (value,) = tuple(value.marks), value.values
        yield name or getattr(value, "__name__", str(value).removeprefix("torch.")), value, marks
