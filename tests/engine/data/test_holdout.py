"""Training images that are held out: which, how many, and that nobody else sees them."""

from pathlib import Path

import numpy as np
import pytest

from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.sets.division import hold_out
from polychrome.engine.errors import UserError


def listed(per_class, order=None):
    rows = [(f"{label}/{number}.jpg", label) for label, count in enumerate(per_class) for number in range(count)]
    rows = [rows[i] for i in order] if order is not None else rows
    train = Split(tuple(path for path, _ in rows), tuple(label for _, label in rows))
    return ImageSet(Path("/data"), tuple(map(str, range(len(per_class)))), {"train": train, "val": Split(("a",), (0,))})


@pytest.mark.parametrize("count", [1, 10, 33])
def test_each_class_gives_its_share(count):
    found = hold_out(listed([40, 20, 20]), count)
    held, train = found.splits["holdout"], found.splits["train"]
    assert len(held.paths) == count
    assert set(held.paths).isdisjoint(train.paths)
    assert len(train.paths) + count == 80
    shares = np.bincount(held.labels, minlength=3) / count
    assert np.abs(shares - [0.5, 0.25, 0.25]).max() <= 1 / count
    assert found.splits["val"] == Split(("a",), (0,))
    assert all(path.startswith(f"{label}/") for path, label in zip(held.paths, held.labels, strict=True))


def test_the_choice_is_of_the_files_whatever_their_order_and_how_often_they_are_listed():
    order = np.random.default_rng(0).permutation(80).tolist()
    plain, mixed, twice = (hold_out(listed([40, 20, 20], order), 12) for order in (None, order, [*range(80), 0, 50]))
    held = [set(found.splits["holdout"].paths) for found in (plain, mixed, twice)]
    assert held[0] == held[1] == held[2]
    assert held[2].isdisjoint(twice.splits["train"].paths)
    assert held[0] != {f"0/{n}.jpg" for n in range(6)} | {f"{c}/{n}.jpg" for c in (1, 2) for n in range(3)}


def test_at_most_half_of_a_class_can_be_held_out():
    assert len(hold_out(listed([4, 4]), 4).splits["holdout"].paths) == 4
    with pytest.raises(UserError, match=r"--holdout 6: 3 of 4 training images of class '0' in /data; at most half"):
        hold_out(listed([4, 4]), 6)
