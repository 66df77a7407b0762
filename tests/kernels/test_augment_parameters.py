"""What is drawn for each image: by (seed, epoch, image index) alone, and distributed as it should be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2

from polychrome.kernels.augment import Parameters, Recipe, augment, draw, parameters
from polychrome.kernels.augment.parameters import random_crops
from polychrome.kernels.augment.philox import philox, uniforms
from tests.kernels.augment_cases import images
from tests.kernels.interpreter import needs_interpreter

EVERYTHING = Recipe(
    scale=(0.35, 1.0),
    flip=0.5,
    vflip=0.5,
    degrees=15.0,
    brightness=0.2,
    contrast=0.3,
    gamma=0.4,
    grayscale=0.1,
    cutout=0.25,
    channels="shuffle",
)

# Known answers of the authors' library: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def rows(drawn: Parameters, chosen) -> list[torch.Tensor]:
    return [column[chosen] for column in drawn if column is not None]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(word.item() for word in words) == expected


@needs_interpreter
def test_philox_is_tritons():
    import triton
    import triton.language as tl

    @triton.jit
    def words(out_ptr, seed, N: tl.constexpr):
        index = tl.arange(0, N)
        c0, c1, c2, c3 = tl.randint4x(seed, index)
        tl.store(out_ptr + index, c0.to(tl.int32, bitcast=True))
        tl.store(out_ptr + N + index, c1.to(tl.int32, bitcast=True))
        tl.store(out_ptr + 2 * N + index, c2.to(tl.int32, bitcast=True))
        tl.store(out_ptr + 3 * N + index, c3.to(tl.int32, bitcast=True))

    seed = 0x123456789ABCDE
    out = torch.zeros(4, 16, dtype=torch.int32)
    words[(1,)](out, seed, N=16)
    zero = torch.zeros(16, dtype=torch.int64)
    expected = philox((torch.arange(16), zero, zero, zero), (seed & 0xFFFFFFFF, seed >> 32))
    assert torch.equal(out.long() & 0xFFFFFFFF, torch.stack(expected))


def test_uniforms_are_uniform_and_uncorrelated():
    drawn = uniforms(torch.arange(4000), 3, 1, range(5)).flatten(1)
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < drawn.max() < 1
    assert (drawn.mean(0) - 0.5).abs().max() < 0.02
    assert (drawn.var(0) - 1 / 12).abs().max() < 0.004
    correlation = torch.corrcoef(drawn.T) - torch.eye(20)
    assert correlation.abs().max() < 0.07
    neighbours = torch.corrcoef(torch.stack([drawn[1:].flatten(), drawn[:-1].flatten()]))[0, 1]
    assert neighbours.abs() < 0.02


def test_a_row_depends_on_seed_epoch_and_index_alone():
    together = draw(EVERYTHING, torch.arange(50), (60, 80), 7, 3, (32, 32), 3)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for one, other in zip(
        rows(draw(EVERYTHING, shuffled, (60, 80), 7, 3, (32, 32), 3), slice(None)),
        rows(together, shuffled),
        strict=True,
    ):
        assert torch.equal(one, other)
    for chosen in (slice(0, 1), slice(10, 13)):
        alone = draw(EVERYTHING, torch.arange(50)[chosen], (60, 80), 7, 3, (32, 32), 3)
        for one, other in zip(rows(alone, slice(None)), rows(together, chosen), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 4}, {"seed": 7 + 2**32}])
def test_another_seed_or_epoch_draws_anew(other):
    base = {"seed": 7, "epoch": 3}
    one, two = (
        draw(EVERYTHING, torch.arange(200), (60, 80), size=(32, 32), channels=3, **(base | more))
        for more in ({}, other)
    )
    for first, second in zip(rows(one, slice(None)), rows(two, slice(None)), strict=True):
        assert not torch.equal(first, second)


def test_what_is_drawn_later_leaves_the_rest_as_it_was():
    less = draw(Recipe(scale=(0.35, 1.0), flip=0.5), torch.arange(50), (60, 80), 7, 3)
    more = draw(EVERYTHING, torch.arange(50), (60, 80), 7, 3, (32, 32), 3)
    assert torch.equal(less.crops, more.crops)
    assert torch.equal(less.flips, more.flips)
    assert less._replace(crops=None, flips=None) == Parameters(*[None] * len(Parameters._fields))
    assert not torch.equal(more.flips, more.vflips)


def test_crops_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    sizes, n = (60, 90), 4000
    ours = draw(Recipe(scale=(0.35, 1.0)), torch.arange(n), sizes, 1, 0).crops.double()
    image = torch.zeros(3, *sizes)
    theirs = torch.tensor(
        [v2.RandomResizedCrop.get_params(image, [0.35, 1.0], [3 / 4, 4 / 3]) for _ in range(n)], dtype=torch.float64
    )
    for column in range(4):
        grid = torch.linspace(0, 90, 46)[:, None]
        distance = ((ours[:, column] <= grid).double().mean(1) - (theirs[:, column] <= grid).double().mean(1)).abs()
        assert distance.max() < 0.035  # Kolmogorov-Smirnov: 0.036 is exceeded once in a hundred
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 60).all()
    assert (ours[:, 1] + ours[:, 3] <= 90).all()
    area = ours[:, 2] * ours[:, 3] / (60 * 90)
    assert area.min() > 0.33
    assert area.max() <= 1


def test_an_image_that_no_try_fits_gets_the_largest_central_crop():
    drawn = torch.full((2, 10, 4), 0.999, dtype=torch.float64)
    crops = random_crops(drawn, torch.tensor([[10, 200], [200, 10]]), (1.0, 1.0), (0.9, 1.1))
    assert crops.tolist() == [[0, 94, 10, 11], [94, 0, 11, 10]]


def test_sizes_of_every_image_are_its_own():
    sizes = torch.tensor([[10, 20], [300, 200]])
    crops = draw(Recipe(scale=(0.5, 1.0)), torch.tensor([4, 9]), sizes, 0, 0).crops
    assert (crops[:, :2] + crops[:, 2:] <= sizes).all()
    assert crops[1, 2] > 100


def test_factors_angles_and_switches_have_their_ranges():
    drawn = draw(EVERYTHING, torch.arange(4000), (60, 80), 5, 0, (40, 32), 3)
    for factor, spread in ((drawn.brightness, 0.2), (drawn.contrast, 0.3), (drawn.gamma, 0.4)):
        assert factor.dtype == torch.float32
        assert (factor - 1).abs().max() <= spread + 1e-6
        assert (factor - 1).abs().max() > 0.98 * spread
        assert (factor.mean() - 1).abs() < 0.02
    assert 14.5 < drawn.angles.max() <= 15
    assert -15 <= drawn.angles.min() < -14.5
    first_crop = drawn.crops[:, 2] * drawn.crops[:, 3]
    for factor in (drawn.brightness, drawn.contrast, drawn.gamma, drawn.angles):
        assert torch.corrcoef(torch.stack([first_crop.double(), factor.double()]))[0, 1].abs() < 0.06
    assert abs(drawn.flips.double().mean() - 0.5) < 0.03
    assert abs(drawn.vflips.double().mean() - 0.5) < 0.03
    assert abs((drawn.flips == drawn.vflips).double().mean() - 0.5) < 0.03
    whole = (drawn.channels >= 0).all(1)
    assert abs(drawn.grayscale[whole].double().mean() - 0.1) < 0.02
    assert not drawn.grayscale[~whole].any()
    assert (drawn.cutouts[:, 2:] == 8).all()
    centre = drawn.cutouts[:, :2] + 4
    assert centre.min(0).values.tolist() == [0, 0]
    assert centre.max(0).values.tolist() == [39, 31]


@pytest.mark.parametrize("count", [1, 3, 48])
def test_each_channel_has_a_gain_of_its_own(count):
    gains = draw(Recipe(gain=0.3), torch.arange(3000), (8, 8), 2, 0, channels=count).brightness
    assert gains.shape == (3000, count)
    assert gains.dtype == torch.float32
    assert 0.29 < (gains - 1).abs().max() <= 0.3 + 1e-6
    assert (gains.mean(0) - 1).abs().max() < 0.02
    if count > 1:
        assert (torch.corrcoef(gains.T) - torch.eye(count)).abs().max() < 0.1
    both = draw(Recipe(gain=0.3, brightness=0.2), torch.arange(3000), (8, 8), 2, 0, channels=count).brightness
    alone = draw(Recipe(brightness=0.2), torch.arange(3000), (8, 8), 2, 0).brightness
    torch.testing.assert_close(both, gains * alone[:, None])


@pytest.mark.parametrize("count", [1, 3, 13])
@pytest.mark.parametrize("order", ["subset", "shuffle"])
def test_channels_are_sampled_hierarchically(order, count):
    chosen = draw(Recipe(channels=order), torch.arange(3000), (8, 8), 2, 0, channels=count).channels
    assert chosen.shape == (3000, count)
    present = chosen >= 0
    counts = torch.bincount(present.sum(1), minlength=count + 1)
    assert counts[0] == 0
    assert (counts[1:] / 3000 - 1 / count).abs().max() < 0.04
    named = torch.stack([(chosen == channel).any(1) for channel in range(count)], 1)
    assert (named.sum(1) == present.sum(1)).all()
    assert (named.double().mean(0) - (count + 1) / (2 * count)).abs().max() < 0.04
    if order == "subset":
        assert torch.equal(chosen.where(present, 0), torch.arange(count).where(present, 0))
    else:
        assert torch.equal(present, torch.arange(count) < present.sum(1, keepdim=True))
        first = torch.bincount(chosen[:, 0], minlength=count) / 3000
        assert (first - 1 / count).abs().max() < 0.04


@pytest.mark.parametrize("order", ["subset", "shuffle"])
@pytest.mark.parametrize(("bias", "shares"), [(1.0, (6, 3, 2)), (-1.0, (1, 2, 3)), (1e-9, (1, 1, 1))])
def test_a_bias_draws_few_channels_more_often_or_less(order, bias, shares):
    recipe = Recipe(channels=order, channel_bias=bias)
    counts = (draw(recipe, torch.arange(6000), (8, 8), 0, 0, channels=3).channels >= 0).sum(1)
    found = counts.bincount(minlength=4)[1:] / len(counts)
    assert torch.allclose(found, torch.tensor(shares) / sum(shares), atol=0.02)


def test_a_bias_leaves_which_channels_to_chance():
    kept = draw(Recipe(channels="subset", channel_bias=2.0), torch.arange(6000), (8, 8), 0, 0, channels=4).channels >= 0
    assert kept.any(1).all()
    assert torch.allclose(kept.float().mean(0), kept.float().mean().expand(4), atol=0.02)


@pytest.mark.parametrize(("bias", "count"), [(1e6, 1), (-1e6, 48)])
def test_however_large_a_bias_is_there_is_a_number_to_draw(bias, count):
    found = draw(Recipe(channels="subset", channel_bias=bias), torch.arange(9), (8, 8), 0, 0, channels=48).channels
    assert ((found >= 0).sum(1) == count).all()


@pytest.mark.parametrize("order", ["subset", "shuffle"])
def test_runs_are_of_neighbours_from_the_first_to_the_last(order):
    recipe = Recipe(channels=order, channel_runs=1.0)
    found = draw(recipe, torch.arange(6000), (8, 8), 0, 0, channels=6).channels
    shown = torch.stack([(found == channel).any(1) for channel in range(6)], 1)
    first, last = shown.int().argmax(1), 5 - shown.flip(1).int().argmax(1)
    assert torch.equal(last - first + 1, shown.sum(1))
    numbers = shown.sum(1).bincount(minlength=7)[1:] / 6000
    assert torch.allclose(numbers, torch.full((6,), 1 / 6), atol=0.02)
    pairs = first[shown.sum(1) == 2].bincount(minlength=5) / (shown.sum(1) == 2).sum()
    assert torch.allclose(pairs, torch.full((5,), 1 / 5), atol=0.05)
    if order == "shuffle":  # in random order
        assert (found[:, 0] == first)[shown.sum(1) == 6].float().mean() == pytest.approx(1 / 6, abs=0.03)


def test_a_share_of_runs_leaves_the_other_images_as_they_were():
    both = [
        draw(Recipe(channels="subset", channel_runs=share), torch.arange(6000), (8, 8), 0, 0, channels=6).channels
        for share in (0.0, 0.3)
    ]
    by_chance = _neighbours(both[0]).float().mean().item()
    assert _neighbours(both[1]).float().mean() == pytest.approx(0.3 + 0.7 * by_chance, abs=0.02)
    assert (both[0] != both[1]).any(1).float().mean() < 0.3
    assert torch.equal((both[0] >= 0).sum(1), (both[1] >= 0).sum(1))


def test_runs_are_of_the_channels_that_an_image_has():
    present = torch.tensor([[True, False, True, False, True, True]]).expand(3000, -1)
    recipe = Recipe(channels="subset", channel_runs=1.0)
    shown = draw(recipe, torch.arange(3000), (8, 8), 0, 0, channels=6, present=present).channels >= 0
    assert not shown[:, [1, 3]].any()
    own = torch.arange(4).where(shown[:, [0, 2, 4, 5]], -1)
    assert _neighbours(own).all()
    assert torch.allclose(shown.sum(1).bincount(minlength=5)[1:] / 3000, torch.full((4,), 1 / 4), atol=0.03)


def _neighbours(channels):
    """Return whether the channels shown, [n, count] with -1 for absent, follow each other."""
    shown = channels >= 0
    count = shown.shape[1]
    return count - shown.int().argmax(1) - shown.flip(1).int().argmax(1) == shown.sum(1)


SENSORS = ((0, 1, 2, 3, 4), (1, 3), (4,), (0, 2, 3))


@pytest.mark.parametrize("bias", [0.0, 2.0])
@pytest.mark.parametrize("order", ["subset", "shuffle"])
def test_channels_that_an_image_lacks_are_never_drawn_and_the_others_as_if_they_were_all(order, bias):
    present = torch.zeros(len(SENSORS), 5, dtype=torch.bool)
    for row, chosen in enumerate(SENSORS):
        present[row, list(chosen)] = True
    recipe, indices = Recipe(channels=order, channel_bias=bias), torch.arange(3000 * len(SENSORS))
    drawn = draw(recipe, indices, (8, 8), 2, 0, channels=5, present=present.repeat(3000, 1)).channels
    alone = draw(recipe, indices, (8, 8), 2, 0, channels=5).channels
    for row, own in enumerate(SENSORS):
        chosen, count = drawn[row :: len(SENSORS)], len(own)
        shown = torch.stack([(chosen == channel).any(1) for channel in range(5)], 1)
        assert not (shown & ~present[row]).any()
        shares = torch.arange(1.0, count + 1) ** -bias / (torch.arange(1.0, count + 1) ** -bias).sum()
        numbers = shown.sum(1).bincount(minlength=6) / 3000
        assert torch.allclose(numbers[1 : count + 1], shares, atol=0.03)
        means = shown[:, list(own)].float().mean(0)
        assert torch.allclose(means, (shares * torch.arange(1.0, count + 1)).sum().expand(count) / count, atol=0.03)
        if order == "subset":
            assert torch.equal(chosen, torch.arange(5).where(shown, -1))
        else:
            assert torch.equal(chosen >= 0, torch.arange(5) < shown.sum(1, keepdim=True))
    assert torch.equal(drawn[:: len(SENSORS)], alone[:: len(SENSORS)])
    assert torch.equal(
        draw(recipe, indices[7:9], (8, 8), 2, 0, channels=5, present=present[[3, 0]]).channels, drawn[7:9]
    )


def test_what_is_drawn_is_what_augment_takes():
    drawn = draw(EVERYTHING, torch.tensor([3, 0, 4]), (23, 19), 1, 2, (16, 16), 3)
    got = augment(images(), indices=torch.tensor([3, 0, 4]), size=16, **drawn._asdict())
    assert got.shape == (3, 3, 16, 16)
    again = augment(images(), indices=torch.tensor([4]), size=16, **{k: v[2:] for k, v in drawn._asdict().items()})
    torch.testing.assert_close(again[0], got[2])


@pytest.mark.parametrize("order", ["subset", "shuffle"])
@pytest.mark.parametrize("options", [{}, {"channel_bias": 2.0}, {"channel_runs": 1.0}], ids=str)
def test_no_channel_is_drawn_of_an_image_that_has_none(order, options, monkeypatch):
    monkeypatch.setattr(parameters, "_may_be_read", lambda tensor: False)  # as on a GPU
    present = torch.tensor([[False] * 3, [False, True, False], [True, True, False]])
    shown = draw(Recipe(channels=order, **options), torch.arange(3), (8, 8), 0, 0, channels=3, present=present).channels
    assert (shown >= 0).sum(1).tolist()[:2] == [0, 1]
    assert 1 <= (shown[2] >= 0).sum() <= 2


@pytest.mark.parametrize("first", ["fake", "real"])
def test_fake_tensors_leave_real_draws_alone(first):
    recipe = Recipe(flip=0.25, channels="subset", channel_bias=0.5 if first == "fake" else 0.75)

    def drawn():
        return draw(recipe, torch.arange(3), (5, 5), 0, 0, channels=7)

    def faked():
        with FakeTensorMode():
            return drawn()

    found = [made() for made in ((faked, drawn, faked) if first == "fake" else (drawn, faked, drawn))]
    real = found[1] if first == "fake" else found[2]
    assert [each.channels.shape for each in found] == [(3, 7)] * 3
    assert type(real.channels) is torch.Tensor
    assert torch.equal(real.channels, draw(recipe, torch.arange(3), (5, 5), 0, 0, channels=7).channels)


def test_a_default_device_does_not_matter():
    recipe, indices = Recipe(channels="subset", channel_bias=1.25), torch.arange(3)
    with torch.device("meta"):
        found = draw(recipe, indices, (5, 5), 0, 0, channels=5)
    assert torch.equal(found.channels, draw(recipe, indices, (5, 5), 0, 0, channels=5).channels)


def test_a_recipe_takes_numbers_of_any_library():
    indices = torch.arange(20)
    found = [draw(Recipe(flip=flip), indices, (8, 8), 0, 0).flips for flip in (0.5, np.float32(0.5))]
    assert torch.equal(*found)


def test_indices_beyond_32_bits_are_told_apart():
    near, far = torch.tensor([5]), torch.tensor([5 + 2**32])
    assert not torch.equal(uniforms(near, 0, 0, [0]), uniforms(far, 0, 0, [0]))


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "indices must be int32 or int64 [n], got torch.float32 [3]", {"indices": torch.zeros(3)}),
        (TypeError, "indices must be an int32 or int64 tensor [n], got list", {"indices": [0, 1]}),
        (ValueError, "seed must be from 0 to 2**64 - 1 and epoch to 2**32 - 1, got -1 and 0", {"seed": -1}),
        (ValueError, "seed must be from 0 to 2**64 - 1 and epoch to 2**32 - 1, got 0 and 4294967296", {"epoch": 2**32}),
        (ValueError, "seed must be from 0 to 2**64 - 1 and epoch to 2**32 - 1, got 0.5 and 0", {"seed": 0.5}),
        *(
            (error, f"sizes must be (height, width) or [n=3, 2], integers of at least 1, got {got}", {"sizes": sizes})
            for error, got, sizes in (
                (ValueError, "[2, 2]", torch.ones(2, 2, dtype=torch.long)),
                (ValueError, "(0, 10)", (0, 10)),
                (ValueError, "(8, 10.5)", (8, 10.5)),
                (ValueError, "5", 5),
                (TypeError, "torch.float32", torch.ones(3, 2)),
                (TypeError, "torch.bool", torch.ones(3, 2, dtype=torch.bool)),
            )
        ),
        (
            ValueError,
            "sizes must be at least 1, got [7, 0] in sample 1",
            {"sizes": torch.tensor([[5, 6], [7, 0], [-1, 3]])},
        ),
        (ValueError, "sizes must be at least 1, got [-5, 10] in sample 0", {"sizes": torch.tensor([-5, 10])}),
        (ValueError, "size must be (height, width), each an int of at least 1, got 4", {"size": 4}),
        (ValueError, "channels must be an int of at least 1, got 0", {"channels": 0}),
        (ValueError, "channels must be an int of at least 1, got -1", {"recipe": Recipe(gain=0.5), "channels": -1}),
        (
            ValueError,
            "present must be true for at least one channel, got [False, False] in sample 2",
            {"present": torch.tensor([[True, False], [True, True], [False, False]]), "channels": 2},
        ),
        (
            ValueError,
            "a recipe with a cutout needs the size of the output, got None",
            {"recipe": Recipe(cutout=0.5)},
        ),
        (
            ValueError,
            "a recipe that samples channels, or has a gain for each, needs their number, got None",
            {"recipe": Recipe(channels="subset")},
        ),
        (TypeError, "present must be a bool tensor, got list", {"present": [True]}),
        (TypeError, "present must be a bool tensor, got torch.float32", {"present": torch.ones(3, 2)}),
        (
            ValueError,
            "present must be [n=3, channels=2], got [2, 3]",
            {"present": torch.ones(2, 3, dtype=torch.bool), "channels": 2},
        ),
    ],
)
def test_bad_draws_are_named(error, message, changes):
    arguments = {"recipe": Recipe(), "indices": torch.arange(3), "sizes": (8, 8), "seed": 0, "epoch": 0}
    with pytest.raises(error) as caught:
        draw(**(arguments | changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("flip must be from 0 to 1, got 1.5", {"flip": 1.5}),
        ("degrees must be from 0 to 180, got -1", {"degrees": -1}),
        ("channel_bias must be from -1e+06 to 1e+06, got inf", {"channel_bias": float("inf")}),
        ("brightness must be from 0 to 1, got -0.1", {"brightness": -0.1}),
        ("gamma must be below 1, or an image could be raised to the power of 0", {"gamma": 1.0}),
        ("scale must be a range within 0 to 1, got (0.0, 1.0)", {"scale": (0.0, 1.0)}),
        ("scale must be a range within 0 to 1, got (0.8, 0.5)", {"scale": (0.8, 0.5)}),
        ("ratio must be a range of positive numbers, got (0, 1)", {"ratio": (0, 1)}),
        ("scale must be a range within 0 to 1, got (0.3, 0.5, 0.9)", {"scale": (0.3, 0.5, 0.9)}),
        ("scale must be a range within 0 to 1, got 0.5", {"scale": 0.5}),
        ("ratio must be a range of positive numbers, got (1, inf)", {"ratio": (1, float("inf"))}),
        ("flip must be from 0 to 1, got None", {"flip": None}),
        ("flip must be from 0 to 1, got nan", {"flip": float("nan")}),
        ("channels must be one of all, subset, shuffle, got 'some'", {"channels": "some"}),
    ],
)
def test_recipes_out_of_range_are_named(message, changes):
    with pytest.raises(ValueError, match="must be") as caught:
        Recipe(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("channels", ["all", "subset", "shuffle"])
def test_an_image_without_some_of_its_channels_is_not_drawn_gray_and_all_else_is_as_before(channels):
    """Gray is made of all three channels: the ones that are left would show the others."""
    images, present = torch.arange(600), torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]]).bool().repeat(200, 1)
    gray, plain = (replace(EVERYTHING, channels=channels, grayscale=share) for share in (0.5, 0.0))
    for there in (None, present):
        drawn, rest = (draw(recipe, images, (60, 80), 7, 3, (32, 32), 3, there) for recipe in (gray, plain))
        whole = torch.ones(600, dtype=torch.bool) if there is None else there.all(1)
        whole = whole if drawn.channels is None else whole & (drawn.channels >= 0).all(1)
        assert abs(drawn.grayscale[whole].double().mean() - 0.5) < 0.15
        assert not drawn.grayscale[~whole].any()
        for one, other in zip(drawn._replace(grayscale=None), rest, strict=True):
            assert one is other is None or torch.equal(one, other)
