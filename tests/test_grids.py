"""The covering of a grid is what the usual run takes of it."""

from itertools import combinations, product

import pytest

from tests.grids import grid, pairwise


@pytest.mark.parametrize("sizes", [(2, 2), (7, 3, 2), (12, 7, 3, 2), (3, 3, 3, 3)], ids=str)
def test_any_two_values_that_occur_together_do_so_in_the_covering(sizes):
    rows = [row for row in product(*map(range, sizes)) if row[:2] != (1, 1)]
    kept = pairwise(rows)
    largest, second = sorted(sizes)[-2:]
    assert len(kept) <= 1.5 * largest * second

    def pairs(rows):
        return {pair for row in rows for pair in combinations(enumerate(row), 2)}

    assert pairs(kept) == pairs(rows)


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
