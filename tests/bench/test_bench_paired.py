"""Comparisons on the same images: McNemar's test and intervals against known values and simulations."""

import lzma

import numpy as np
import pytest
from scipy import stats

from bench.studies import paired
from bench.studies.paired import Answers


def of(right):
    """Return answers from bool [trainings, images]."""
    return Answers(tuple(map(str, range(right.shape[1]))), right)


def answers(*counts):
    """Return answers of ours and theirs: both right, only ours, only theirs, none, as often as `counts` say."""
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    rows = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    return tuple(of(np.array(column)[None]) for column in zip(*rows, strict=True))


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


def test_the_largest_p_value_of_any_two_trainings_counts_in_any_order():
    ours, theirs = np.zeros((2, 30), bool), np.zeros((3, 30), bool)
    for row, count in zip((*ours, *theirs), (20, 25, 5, 10, 12), strict=True):
        row[:count] = True
    assert paired.mcnemar(of(ours), of(theirs)) == pytest.approx(2 / 2**8)  # 20 and 12 of 30
    assert paired.mcnemar(of(ours), of(theirs[::-1])) == paired.mcnemar(of(ours[::-1]), of(theirs)) == 2 / 2**8


def test_answers_on_other_images_are_not_compared():
    right = np.ones((1, 4), bool)
    for compare in (paired.mcnemar, paired.difference):
        with pytest.raises(ValueError, match="2 images, such as 3, were shown to one of two compared networks alone"):
            compare(of(right), Answers(("0", "1", "2", "4"), right))


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    found = paired.accuracy(of(np.arange(2500)[None] < 1000))
    assert found.value == 0.4
    assert found.high - found.value == pytest.approx(1.96 * (0.24 / 2500) ** 0.5, rel=2e-3)
    assert found.value - found.low == pytest.approx(1.96 * (0.24 / 2500) ** 0.5, rel=2e-3)


def test_images_are_paired_and_trainings_are_not():
    generator = np.random.default_rng(1)
    theirs = np.stack([generator.random(2000) < 0.5 for _ in range(3)])
    ours = theirs.copy()
    ours[:, :40] = True
    same = paired.difference(of(theirs), of(theirs))
    assert same.value == 0
    assert same.low < 0 < same.high
    better = paired.difference(of(ours[:1]), of(theirs[:1]))
    # Of one training each, the images that differ alone are uncertain.
    changed = (ours[0] & ~theirs[0]).sum()
    assert better.value == pytest.approx(changed / 2000)
    assert better.high - better.value == pytest.approx(1.96 * changed**0.5 / 2000, rel=0.02)


def test_trainings_that_differ_widen_the_interval():
    alike, apart = np.zeros((3, 3000), bool), np.zeros((3, 3000), bool)
    alike[:, :1500] = True
    for row, count in zip(apart, (1350, 1500, 1650), strict=True):
        row[:count] = True
    narrow, wide = paired.accuracy(of(alike)), paired.accuracy(of(apart))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    # Accuracies of 45, 50 and 55%: of two variances, that over trainings has two degrees of freedom.
    trainings, images = 0.05**2 / 3, apart.mean(0).var() / 3000
    freedom = 2 * ((trainings + images) / trainings) ** 2
    reach = stats.t.ppf(0.975, freedom) * (trainings + images) ** 0.5
    assert wide.high - wide.value == pytest.approx(reach, rel=0.01)


@pytest.mark.parametrize("apart", [(0.0, 0.0), (0.007, 0.007), (0.015, 0.015), (0.009, 0.032)])
def test_of_networks_that_are_equally_good_nineteen_intervals_in_twenty_have_0(apart):
    """Of three trainings each, whose true accuracies differ by these standard deviations."""
    generator, cases, hits = np.random.default_rng(0), 400, 0
    for _ in range(cases):
        ease = generator.normal(size=1000)  # of images, in which half of the variation of an answer is
        shown = (
            ease + generator.normal(size=(3, 1000)) + 2**0.5 * 2.5066 * spread * generator.normal(size=(3, 1)) > 0
            for spread in apart
        )
        found = paired.difference(*map(of, shown))
        hits += found.low <= 0 <= found.high
    # Three values are few: the interval is narrow where one network varies much more than the other, the last case.
    assert 0.88 < hits / cases < 0.99


def test_images_are_read_in_one_order_and_must_be_the_same(tmp_path):
    def file(name, *rows):
        path = tmp_path / f"{name}.csv.xz"
        path.write_bytes(lzma.compress("\n".join(["split,image,label,RGB,RGB flipped", *rows, ""]).encode()))
        return path

    first = file("a", "val,x,1,1,0", "test,p,0,0,1", "test,q,1,0,1")
    second = file("b", "test,q,1,1,1", "test,p,0,0,0")
    found = paired.answers([first, second], "test", "RGB")
    assert found.images == ("p", "q")
    assert found.right.tolist() == [[True, False], [True, True]]
    assert paired.answers([first], "test", "RGB flipped").right.tolist() == [[False, True]]
    with pytest.raises(ValueError, match="differ in the images of test"):
        paired.answers([first, file("c", "test,p,0,0,0")], "test", "RGB")
    with pytest.raises(ValueError, match="differ in the images of fresh, or have none"):
        paired.answers([first], "fresh", "RGB")
