"""The op on a CPU and its definition, against each other and against torchvision and DALI."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from polychrome.kernels import augment, use_backend
from tests.kernels.augment_cases import CASES, PARAMETERS, SIZES, SMALLEST_STD, images, statistics
from tests.kernels.oracle import rms_ratio

DTYPES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
# Resized in uint8 on a CPU; with crops, at the images' own size too.
ROUNDED = ("indices", "flips", "vflips", "channels", "cutouts", "no_parameters", "crops", "training")


@pytest.fixture(scope="module")
def photo():
    """A photograph, uint8 [height, width, 3]."""
    matplotlib = pytest.importorskip("matplotlib.cbook")
    with matplotlib.get_sample_data("grace_hopper.jpg") as file:
        return torch.from_numpy(np.array(Image.open(file).convert("RGB")))


def as_batch(photo):
    return photo[None], photo.permute(2, 0, 1)


def difference(got, expected) -> float:
    """Return the mean absolute difference in steps of 1/255; `expected` is a uint8 image."""
    return (got[0] * 255 - expected).abs().mean().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_cpu_path_is_near_the_definition_in_float64(case, size, dtype):
    arguments = CASES[case] | statistics() | {"size": SIZES[size]}
    exact = augment.reference(images(), dtype=torch.float64, **arguments)
    got = augment(images(), dtype=dtype, **arguments)
    assert got.dtype == dtype
    assert got.shape == exact.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    rounds = case in ROUNDED and (size != "same" or "crops" in arguments)
    assert rms_ratio(got, exact) <= max(DTYPES[dtype], 2e-2 * rounds)
    if dtype == torch.float32:
        assert (got - exact).abs().max() * SMALLEST_STD <= (1.001 if rounds else 0.001) / 255


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("jittered", [False, True], ids=["plain", "jittered"])
@pytest.mark.parametrize("size", [1, (33, 1), (1, 40), (33, 2), 64], ids=str)
def test_any_output_size(size, jittered, channels):
    arguments = CASES["training"] | ({"gamma": PARAMETERS["gamma"]} if jittered else {})
    exact = augment.reference(images(channels), size=size, dtype=torch.float64, **arguments)
    got = augment(images(channels), size=size, **arguments)
    assert (got - exact).abs().max() <= (1e-5 if jittered or channels > 4 else 1.01 / 255)


def test_float64_is_computed_in_it():
    exact = augment.reference(images(), size=8, dtype=torch.float64, **CASES["training"])
    got = augment(images(), size=8, dtype=torch.float64, **CASES["training"])
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


def test_no_gradient_is_recorded():
    factor = torch.ones(5, requires_grad=True)
    for backend in ("auto", "reference"):
        with use_backend(backend):
            assert not augment(images(), brightness=factor, gamma=factor).requires_grad


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("channels", [1, 2, 5, 13])
def test_any_number_of_channels(channels, backend):
    arguments = CASES["training"] | statistics(channels) | {"size": 9}
    with use_backend(backend):
        got = augment(images(channels), **arguments)
    assert got.shape == (4, channels, 9, 9)
    exact = augment.reference(images(channels), dtype=torch.float64, **arguments)
    assert rms_ratio(got, exact) <= (2e-2 if backend == "auto" and channels <= 4 else 1e-5)


@pytest.mark.parametrize("size", [224, 100, 300, (120, 64)], ids=str)
@pytest.mark.parametrize("crop", [(0, 0, 600, 512), (31, 60, 333, 280), (200, 100, 90, 120)], ids=str)
def test_resized_crops_of_a_photograph_are_torchvisions(photo, crop, size):
    batch, planes = as_batch(photo)
    got = augment(batch, torch.tensor([crop]), size=size)
    pair = [size, size] if isinstance(size, int) else list(size)
    assert difference(got, functional.resized_crop(planes, *crop, pair, antialias=True)) < 1e-4
    exact = functional.resized_crop(planes.float(), *crop, pair, antialias=True)
    assert difference(got, exact) < 0.5
    unrounded = augment(batch, torch.tensor([crop]), size=size, gamma=torch.ones(1))
    assert difference(unrounded, exact) < 0.01


def test_rotation_of_a_photograph_is_torchvisions(photo):
    batch, planes = as_batch(photo)
    for angle in (-170.0, -15.0, 7.5, 45.0, 90.0):
        got = augment(batch, angles=torch.tensor([angle]))
        expected = functional.rotate(planes.float(), angle, functional.InterpolationMode.BILINEAR)
        assert difference(got, expected) < 0.05, angle


@pytest.mark.parametrize(
    ("crop", "turned"), [((31, 60, 333, 400), False), ((31, 60, 140, 150), True)], ids=["shrunk", "enlarged and turned"]
)
def test_a_whole_recipe_on_a_photograph_is_near_torchvisions(photo, crop, turned):
    """torchvision rounds to uint8 after each step, and interpolates once for the crop and once for the rotation."""
    batch, planes = as_batch(photo)
    bilinear = functional.InterpolationMode.BILINEAR
    got = augment(
        batch,
        torch.tensor([crop]),
        torch.tensor([True]),
        torch.tensor([10.0]) if turned else None,
        size=224,
        brightness=torch.tensor([1.2]),
        gamma=torch.tensor([0.8]),
    )
    expected = functional.horizontal_flip(functional.resized_crop(planes, *crop, [224, 224], antialias=True))
    expected = functional.rotate(expected, 10, bilinear) if turned else expected
    expected = functional.adjust_gamma(functional.adjust_brightness(expected, 1.2), 0.8)
    assert difference(got, expected) < 1.5


@pytest.mark.parametrize("size", [224, 112])
def test_a_crop_shrunk_and_turned_at_once_is_nearer_the_truth_than_in_two_steps(photo, size):
    """Taken for the truth: enlarged four times, turned there, and shrunk."""
    batch, planes = as_batch(photo)
    crop, bilinear = (60, 20, 480, 480), functional.InterpolationMode.BILINEAR
    got = augment(batch, torch.tensor([crop]), angles=torch.tensor([30.0]), size=size)
    two_steps = functional.rotate(functional.resized_crop(planes, *crop, [size, size], antialias=True), 30, bilinear)
    fine = functional.rotate(functional.resized_crop(planes.float(), *crop, [1920, 1920]), 30, bilinear)
    truth = functional.resize(fine, [size, size], antialias=True)
    assert difference(got, truth) < 0.75
    assert difference(got, truth) < 0.5 * difference(two_steps[None] / 255, truth)


def test_colours_of_a_photograph_are_torchvisions(photo):
    batch, planes = as_batch(photo)
    got = augment(batch, brightness=torch.tensor([1.3]))
    assert difference(got, functional.adjust_brightness(planes, 1.3)) < 0.6
    got = augment(batch, gamma=torch.tensor([0.7]))
    assert difference(got, functional.adjust_gamma(planes, 0.7)) < 0.6
    got = augment(batch, grayscale=torch.tensor([True]))
    assert difference(got, functional.rgb_to_grayscale(planes, 3)) < 0.6


def test_brightness_and_contrast_are_dalis(photo):
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI is not installed")
    from nvidia.dali import pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def jittered():
        source = fn.external_source([photo.numpy()], batch=False, cycle=True)
        return fn.brightness_contrast(source, brightness=1.0, contrast=1.4), fn.brightness(source, brightness=0.8)

    contrasted, darker = (torch.from_numpy(np.array(out.at(0))).permute(2, 0, 1) for out in jittered().run())
    assert difference(augment(photo[None], contrast=torch.tensor([1.4])), contrasted) < 0.6
    assert difference(augment(photo[None], brightness=torch.tensor([0.8])), darker) < 0.6


@pytest.mark.parametrize(("names", "axes"), [(["flips"], [2]), (["vflips"], [1]), (["flips", "vflips"], [1, 2])])
def test_flips_and_channel_orders_are_exact(names, axes):
    source = images()
    flips = dict.fromkeys(names, torch.tensor([True] * 5))
    got = augment(source, channels=torch.tensor([2, 0, 1, 1]), **flips) * 255
    expected = source.flip(axes)[..., [2, 0, 1, 1]].permute(0, 3, 1, 2)
    assert torch.equal(got.round(), expected.float())
    assert (got - expected).abs().max() < 1e-4


def test_an_image_is_turned_upside_down_after_its_crop_and_before_its_rotation():
    given = {name: PARAMETERS[name] for name in ("crops", "angles")}
    turned = augment(images()[:4], vflips=torch.ones(4, dtype=torch.bool), **given)
    crops = given["crops"].clone()
    inside = crops[:, :2].clamp_min(0), torch.minimum(crops[:, :2] + crops[:, 2:], torch.tensor([23, 19]))
    crops = torch.cat([inside[0], inside[1] - inside[0]], 1)
    crops[:, 0] = 23 - crops[:, 0] - crops[:, 2]
    expected = augment(images()[:4].flip(1), crops, angles=given["angles"])
    torch.testing.assert_close(turned, expected, atol=2e-6, rtol=0)


def test_images_as_they_are_are_copied_exactly():
    got = augment(images(), mean=[0.0] * 3, std=[1 / 255] * 3)
    assert torch.equal(got, images().permute(0, 3, 1, 2).float())


def test_absent_channels_and_cutouts_are_zero_after_normalisation():
    names = ("indices", "channels", "cutouts")
    got = augment(images(), **{name: PARAMETERS[name] for name in names}, **statistics())
    assert not got[1, 1].any()
    assert not got[1, 3].any()
    assert not got[0, :, :4, :4].any()
    assert not got[1, :, :2, 5:8].any()
    assert not got[2, :, 6:, 6:].any()
    assert got[0, :, 4:].ne(0).all()
    assert got[3].ne(0).all()


@pytest.mark.parametrize("names", [("channels",), ("channels", "gamma")], ids=["plain", "jittered"])
def test_absent_channels_in_place_equal_a_mask(names):
    present = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0]]).bool()
    gamma = torch.linspace(0.5, 1.5, 5) if "gamma" in names else None
    channels = torch.arange(3).where(present, -1)
    masked = augment(images(), channels=channels, gamma=gamma, **statistics())
    assert torch.equal(masked, augment(images(), gamma=gamma, **statistics()) * present[:, :, None, None])


def test_images_of_any_stride():
    source = images()
    expected = augment(source, **PARAMETERS, size=8)
    for same in (
        source.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.cat([source, source], 3)[..., :3],
        torch.cat([source, source], 2)[:, :, :19],
        source.flip(1).transpose(1, 2).contiguous().transpose(1, 2).flip(1),
    ):
        torch.testing.assert_close(augment(same, **PARAMETERS, size=8), expected)


def test_a_gray_value_is_kept_by_every_step_that_averages():
    source = torch.full((2, 30, 40, 3), 200, dtype=torch.uint8)
    crops = torch.tensor([[0, 0, 30, 40], [3, 4, 17, 9]])
    got = augment(source, crops, size=11, grayscale=torch.tensor([True, False]))
    torch.testing.assert_close(got[1], torch.full((3, 11, 11), 200 / 255))
    torch.testing.assert_close(got[0], torch.full((3, 11, 11), 200 / 255 * (0.2989 + 0.587 + 0.114)))


@pytest.mark.parametrize(
    "options",
    [{}, {"size": (4, 1), "dtype": torch.float64}, {"angles": torch.empty(0)}, {"brightness": torch.empty(0)}],
    ids=["plain", "resized", "rotated", "jittered"],
)
@pytest.mark.parametrize("function", [augment, augment.reference], ids=["op", "definition"])
def test_no_index_is_an_empty_batch(function, options):
    got = function(images(3), indices=torch.empty(0, dtype=torch.long), **options)
    assert got.shape == (0, 3, *options.get("size", images(3).shape[1:3]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, (1, 4), (4, 1), 6], ids=str)
def test_images_stored_as_planes(size, channels):
    planes = images(channels).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert (augment(planes, size=size) - augment(images(channels), size=size)).abs().max() <= 1.01 / 255


def test_empty_batch():
    got = augment(images(), indices=torch.zeros(0, dtype=torch.int64), size=8, dtype=torch.float16)
    assert got.shape == (0, 3, 8, 8)
    none = augment(images()[:0], torch.zeros(0, 4, dtype=torch.int64), size=8)
    assert none.shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "images must be a uint8 tensor, got float32", {"images": torch.zeros(1, 4, 4, 3)}),
        (TypeError, "images must be a uint8 tensor, got ndarray", {"images": np.zeros((1, 4, 4, 3), np.uint8)}),
        (
            ValueError,
            "images must be [count, height, width, channels], got [4, 4, 3]",
            {"images": torch.zeros(4, 4, 3).byte()},
        ),
        (
            ValueError,
            "images must have at least one pixel and one channel, got [2, 0, 4, 3]",
            {"images": torch.zeros(2, 0, 4, 3).byte()},
        ),
        (ValueError, "size must be at least 1, got 0", {"size": 0}),
        (TypeError, "size must be an int or a pair of them, got True", {"size": True}),
        (ValueError, "mean must be finite, got [0.5, nan, 0.5]", {"mean": [0.5, float("nan"), 0.5]}),
        (
            ValueError,
            "indices must be none, as there are no images, got 3 in sample 0",
            {"images": images()[:0]},
        ),
        (ValueError, "size must be at least 1, got (8, -1)", {"size": (8, -1)}),
        (TypeError, "size must be an int or a pair of them, got 8.5", {"size": 8.5}),
        (TypeError, "dtype must be float32, float64, float16 or bfloat16, got torch.int8", {"dtype": torch.int8}),
        (ValueError, "indices must be 0 to 4, got 5 in sample 2", {"indices": torch.tensor([0, 1, 5, 2])}),
        (ValueError, "indices must be 0 to 4, got -1 in sample 0", {"indices": torch.tensor([-1, 1, 3, 2])}),
        (TypeError, "indices must be int32 or int64, got float32", {"indices": torch.zeros(4)}),
        (ValueError, "crops must be [batch=4, box=4], got [3, 4]", {"crops": torch.ones(3, 4).long()}),
        (TypeError, "crops must be int32 or int64, got float32", {"crops": torch.ones(4, 4)}),
        (TypeError, "crops must be a tensor, got list", {"crops": [[0, 0, 4, 4]] * 4}),
        (
            ValueError,
            "crops must be boxes (top, left, height, width) that meet the images of 23 x 19 pixels, "
            "got [5, 19, 4, 4] in sample 1",
            {"crops": torch.tensor([[0, 0, 4, 4], [5, 19, 4, 4], [0, 0, 4, 4], [0, 0, 4, 0]])},
        ),
        (
            ValueError,
            "crops must be boxes (top, left, height, width) that meet the images of 23 x 19 pixels, "
            "got [3, 3, 4, 0] in sample 0",
            {"crops": torch.tensor([[3, 3, 4, 0]] * 4)},
        ),
        (ValueError, "gamma must be finite and above 0, got 0.0 in sample 1", {"gamma": torch.tensor([1.0, 0, -1, 1])}),
        (ValueError, "angles must be finite, got nan in sample 0", {"angles": torch.full((4,), torch.nan)}),
        (
            ValueError,
            "brightness must be finite, got inf in sample 3",
            {"brightness": torch.tensor([1, 1, 1, torch.inf])},
        ),
        (TypeError, "flips must be bool, got int64", {"flips": torch.ones(4).long()}),
        (ValueError, "angles must be [batch=4], got [4, 1]", {"angles": torch.zeros(4, 1)}),
        (TypeError, "gamma must be float32, got float64", {"gamma": torch.ones(4).double()}),
        (
            ValueError,
            "brightness must be on images' device cpu, got meta",
            {"brightness": torch.ones(4, device="meta")},
        ),
        (ValueError, "mean must have a value for each of the 3 channels, got 2", {"mean": [0.5, 0.5]}),
        (ValueError, "std must have a value for each of the 3 channels, got 4", {"std": [0.5] * 4}),
        (ValueError, "std must not be zero, got [0.5, 0.0, 0.5]", {"std": (0.5, 0, 0.5)}),
        (
            TypeError,
            "mean must be a sequence of floats, got Tensor; call .tolist() on a tensor",
            {"mean": torch.zeros(3)},
        ),
        (ValueError, "channels must be at most 2, got 3 in sample 0", {"channels": torch.tensor([0, 3])}),
        (ValueError, "channels must name at least one output channel, got none", {"channels": torch.zeros(0).long()}),
        (ValueError, "channels must be [batch=4, out], got [3, 2]", {"channels": torch.zeros(3, 2).long()}),
        (
            ValueError,
            "grayscale needs images of 3 channels, got 5",
            {"images": images(5), "grayscale": torch.ones(4).bool()},
        ),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_arguments_are_named(error, message, changes, backend):
    arguments = {"images": images(), "indices": PARAMETERS["indices"]} | changes
    with use_backend(backend), pytest.raises(error) as caught:
        augment(**arguments)
    assert str(caught.value) == message
