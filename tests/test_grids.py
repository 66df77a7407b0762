"""The covering of a grid is what the usual run takes of it."""

from collections import Counter
from itertools import combinations, product

import pytest

from tests.grids import covering_of, grid, usual


@pytest.mark.parametrize("sizes", [(2, 2), (7, 3, 2), (12, 7, 3, 2), (3, 3, 3, 3)], ids=str)
def test_any_two_values_that_occur_together_do_so_in_the_covering(sizes):
    rows = [row for row in product(*map(range, sizes)) if row[:2] != (1, 1)]
    kept = covering_of(rows, 2)
    largest, second = sorted(sizes)[-2:]
    assert len(kept) <= 1.5 * largest * second

    def pairs(rows):
        return {pair for row in rows for pair in combinations(enumerate(row), 2)}

    assert pairs(kept) == pairs(rows)


def test_a_covering_of_strength_1_has_every_value_once_and_the_values_of_short_axes_by_turns():
    kept = covering_of(list(product(range(12), range(3), "ab")), 1)
    assert sorted(row[0] for row in kept) == list(range(12))
    for column, values in ((1, 3), (2, 2)):
        times = Counter(row[column] for row in kept)
        assert len(times) == values
        assert max(times.values()) <= 8


def test_values_marked_slow_leave_the_others_their_usual_cases():
    _, params = grid(strength=1, x=usual("abcd", "c"), y=[0, 1, 2]).args
    quick = [param.id for param in params if not param.marks]
    assert sorted(quick) == ["c-0", "c-1", "c-2"]
    assert len(params) == 12
    assert all(param.marks[0].name == "slow" for param in params if param.values[0] != "c")


def test_a_grid_runs_every_combination_and_marks_those_beyond_the_covering_slow():
    skipped = pytest.param("b", marks=pytest.mark.skip)
    mark = grid(lambda x, z, **_: x or z == "c", x=[0, 1], y={"one": 1, "two": 2}, z=["a", skipped, "c"])
    names, params = mark.args
    assert names == ("x", "y", "z")
    assert [param.id for param in params][:3] == ["0-one-c", "0-two-c", "1-one-a"]
    assert len(params) == 2 + 6
    usual = [param for param in params if "slow" not in {each.name for each in param.marks}]
    assert len(usual) == 7
    assert all(("skip" in {each.name for each in param.marks}) == (param.values[2] == "b") for param in params)
