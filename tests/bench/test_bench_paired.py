"""Comparisons on the same images: McNemar's test and bootstrapped intervals against known values."""

import lzma

import numpy as np
import pytest

from bench.studies import paired


def answers(*counts):
    """Return ours and theirs, bool [images]: both right, only ours, only theirs, none, as often as `counts` say."""
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    rows = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("counts", "p"),
    [
        ((5, 0, 0, 9), 1.0),
        ((5, 7, 7, 1), 1.0),
        ((0, 8, 1, 0), 20 / 512),
        ((50, 1, 8, 3), 20 / 512),
        ((3, 6, 0, 3), 2 / 64),
    ],
)
def test_mcnemar_is_the_two_sided_binomial_test_of_the_images_that_differ(counts, p):
    assert paired.mcnemar(*answers(*counts)) == pytest.approx(p)


def test_mcnemar_of_thousands_of_images():
    p = paired.mcnemar(*answers(2000, 850, 700, 1449))
    # The normal approximation with continuity: z = (150 - 1) / sqrt(1550) = 3.785
    assert p == pytest.approx(1.54e-4, rel=0.03)


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    found = paired.accuracy(np.arange(2500)[None] < 1000)
    assert found.value == 0.4
    assert found.high - found.value == pytest.approx(1.96 * (0.24 / 2500) ** 0.5, rel=0.1)
    assert found.value - found.low == pytest.approx(1.96 * (0.24 / 2500) ** 0.5, rel=0.1)


def test_images_are_paired_and_trainings_are_not():
    generator = np.random.default_rng(1)
    theirs = np.stack([generator.random(2000) < 0.5 for _ in range(3)])
    ours = theirs.copy()
    ours[:, :40] = True
    same = paired.difference(theirs, theirs)
    assert same.value == 0
    assert same.low < 0 < same.high
    better = paired.difference(ours[:1], theirs[:1])
    # Of one training each, the images that differ alone are uncertain.
    changed = (ours[0] & ~theirs[0]).sum()
    assert better.value == pytest.approx(changed / 2000)
    assert better.high - better.value == pytest.approx(1.96 * changed**0.5 / 2000, rel=0.15)


def test_trainings_that_differ_widen_the_interval():
    alike, apart = np.zeros((3, 3000), bool), np.zeros((3, 3000), bool)
    alike[:, :1500] = True
    for row, count in zip(apart, (1350, 1500, 1650), strict=True):
        row[:count] = True
    narrow, wide = paired.accuracy(alike), paired.accuracy(apart)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_images_are_read_in_one_order_and_must_be_the_same(tmp_path):
    def file(name, *rows):
        path = tmp_path / f"{name}.csv.xz"
        path.write_bytes(lzma.compress("\n".join(["split,image,label,RGB,RGB flipped", *rows, ""]).encode()))
        return path

    first = file("a", "val,x,1,1,0", "test,p,0,0,1", "test,q,1,0,1")
    second = file("b", "test,q,1,1,1", "test,p,0,0,0")
    found = paired.right([first, second], "test", "RGB")
    assert found.tolist() == [[True, False], [True, True]]
    assert paired.right([first], "test", "RGB flipped").tolist() == [[False, True]]
    with pytest.raises(ValueError, match="differ in the images of test"):
        paired.right([first, file("c", "test,p,0,0,0")], "test", "RGB")
    with pytest.raises(ValueError, match="differ in the images of fresh, or have none"):
        paired.right([first], "fresh", "RGB")
