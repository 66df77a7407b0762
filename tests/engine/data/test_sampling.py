import numpy as np
import pytest
import torch

from polychrome.engine.data import sampling
from polychrome.kernels.augment import Recipe, draw


def drawn(sizes, seed, epoch, scale=(0.35, 1.0), indices=None):
    """Crops and flips of images of the sizes, by default the first ones of a set."""
    indices = np.arange(len(sizes)) if indices is None else indices
    return sampling.crops_and_flips(Recipe(scale=scale, flip=0.5), indices, sizes, seed, epoch)


def test_order_is_a_permutation_that_seed_and_epoch_decide():
    first = sampling.order(1000, seed=1, epoch=2)
    assert sorted(first) == list(range(1000))
    np.testing.assert_array_equal(first, sampling.order(1000, 1, 2))
    assert (first != sampling.order(1000, 1, 3)).any()
    assert (first != sampling.order(1000, 2, 2)).any()


def test_what_is_drawn_is_what_the_kernels_draw():
    sizes = np.array([[40, 60], [33, 20], [1, 1], [70, 90]])
    recipe = Recipe(scale=(0.2, 0.9), ratio=(0.5, 1.5), flip=0.5)
    expected = draw(recipe, torch.tensor([9, 0, 5, 2]), torch.from_numpy(sizes), seed=4, epoch=2)
    crops, flips = sampling.crops_and_flips(recipe, np.array([9, 0, 5, 2]), sizes, 4, 2)
    np.testing.assert_array_equal(crops, expected.crops)
    np.testing.assert_array_equal(flips, expected.flips)
    assert sampling.crops_and_flips(Recipe(), np.arange(4), sizes, 4, 2) == (None, None)


def test_purposes_draw_from_different_streams():
    order = sampling.order(4000, 0, 0)
    crops, flips = drawn(np.full((4000, 2), 200), 0, 0)
    assert abs(np.corrcoef(flips, order)[0, 1]) < 0.06
    assert abs(np.corrcoef(flips, crops[:, 0])[0, 1]) < 0.06


@pytest.mark.parametrize("size", [(375, 500), pytest.param((64, 64), marks=pytest.mark.slow), (40, 300)])
def test_random_crops_are_distributed_as_torchvisions(size):
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    scale, ratio, n = (0.35, 1.0), (3 / 4, 4 / 3), 6000
    blank = torch.empty(1, *size)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(n)])
    ours, _ = drawn(np.tile(size, (n, 1)), 0, 0)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.unique(np.concatenate([a, b]))
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / n
        assert distance < 0.035  # Kolmogorov-Smirnov, 0.1 % level for 6,000 against 6,000


@pytest.mark.parametrize(("size", "expected"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))])
def test_extreme_shapes_fall_back_to_the_central_crop(size, expected):
    assert drawn(np.array([size]), 0, 0, (0.9, 1.0))[0][0].tolist() == list(expected)


def test_one_pixel_images_can_be_cropped():
    assert drawn(np.ones((5, 2), int), 0, 0)[0].tolist() == [[0, 0, 1, 1]] * 5
    assert sampling.center_crops(np.ones((1, 2), int), 0.3).tolist() == [[0, 0, 1, 1]]


def test_crops_depend_on_epoch_and_not_on_the_other_images_sizes():
    sizes = np.random.default_rng(0).integers(50, 300, (20, 2))
    first, _ = drawn(sizes, 7, 1)
    np.testing.assert_array_equal(first, drawn(sizes, 7, 1)[0])
    assert (first != drawn(sizes, 7, 2)[0]).any()
    changed = sizes.copy()
    changed[3] = 400, 80
    others = np.arange(20) != 3
    np.testing.assert_array_equal(first[others], drawn(changed, 7, 1)[0][others])


def test_a_part_of_a_set_gets_the_crops_and_flips_that_it_has_in_the_whole():
    count = sampling.AT_ONCE + 100
    sizes = np.random.default_rng(0).integers(50, 300, (count, 2))
    part = np.random.default_rng(1).permutation(count)[:500]
    for whole, some in zip(drawn(sizes, 7, 1), drawn(sizes[part], 7, 1, indices=part), strict=True):
        np.testing.assert_array_equal(some, whole[part])
    crops, flips = drawn(sizes[:0], 7, 1)
    assert (crops.shape, flips.shape) == ((0, 4), (0,))


def test_center_crops_are_central_squares():
    crops = sampling.center_crops(np.array([[100, 200], [301, 100]]), 0.875)
    assert crops.tolist() == [[6, 56, 88, 88], [106, 6, 88, 88]]
