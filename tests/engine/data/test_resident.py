import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from polychrome.engine.channels.names import RGB
from polychrome.engine.data import loader, opening
from polychrome.engine.data.batches import Batch, Streamed
from polychrome.engine.data.image_set import sizes_of
from polychrome.engine.data.readers import choice
from polychrome.engine.data.readers.uniform import stored_crops
from polychrome.engine.data.stores import placement
from polychrome.engine.data.stores.uniform import UniformImages
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError
from tests.engine.data import photos
from tests.engine.data.stores import squeezed

CPU = torch.device("cpu")
BACKENDS = sorted({choice.resolve("auto"), "torch"})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 photos of many sizes; some of them are in both splits."""
    sizes = photos.sizes(40)
    return photos.write(tmp_path_factory.mktemp("photos"), sizes, (("train", 1.0), ("val", 0.25)))


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    """20 photos of one size."""
    return photos.write(tmp_path_factory.mktemp("equal"), [(48, 56)] * 20)


def load(images, size, backend="torch", **options):
    return squeezed(images, size, backend, 0 if backend == "torch" else 1, **options)


def create(images, pixels, **options):
    defaults = {"size": 32, "batch_size": 8, "train": True, "seed": 3, "backend": "torch", "workers": 0}
    options = defaults | options
    return loader.Loader(images, options.pop("split", "train"), store=pixels, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_file_is_decoded_once_and_squeezed(images, backend):
    from torchvision.transforms.v2 import functional

    calls = []
    found, whole = load(images, 40, backend, progress=lambda *now: calls.append(now)), WholeImages.load(images, 1)
    assert found.values.shape == (40, 40, 40, 3)
    assert found.values.nbytes == 40 * 40 * 40 * 3
    assert calls == [(40, 40)]
    for path, values in zip(images.splits["train"].paths, found.values, strict=True):
        image = torch.from_numpy(whole[path].copy()).permute(2, 0, 1)
        assert torch.equal(values.permute(2, 0, 1), functional.resize(image, [40, 40], antialias=True))


def test_draws_are_those_of_the_streaming_backends(images):
    with create(images, load(images, 40)) as ours, create(images, None) as theirs:
        for a, b in zip(ours.epoch(2), theirs.epoch(2), strict=True):
            np.testing.assert_array_equal(a.indices, b.indices)
            assert torch.equal(a.labels, b.labels)
            assert (a.shape, a.device, len(a)) == (b.shape, b.device, len(b))


def test_crops_are_scaled_to_stored_pixels_and_stay_inside():
    regions = np.array([[0, 0, 100, 200], [5, 7, 10, 10], [0, 0, 1000, 1000], [0, 50, 90, 90]])
    crops = np.array([[10, 20, 50, 100], [14, 16, 1, 1], [999, 0, 1, 1], [0, 50, 90, 90]])
    assert stored_crops(crops, regions, (50, 50)).tolist() == [
        [5, 5, 25, 25],
        [45, 45, 5, 5],
        [49, 0, 1, 1],
        [0, 0, 50, 50],
    ]
    rng = np.random.default_rng(0)
    sizes, offsets = rng.integers(1, 300, (1000, 2)), rng.integers(0, 300, (1000, 2))
    start = rng.integers(0, sizes)
    crops = np.concatenate([offsets + start, rng.integers(1, sizes - start + 1)], 1)
    regions = np.concatenate([offsets, sizes], 1)
    found = stored_crops(crops, regions, (31, 47))
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= (31, 47)).all()
    same = stored_crops(crops, np.tile([0, 0, 600, 600], (1000, 1)), (600, 600))
    np.testing.assert_array_equal(same, crops)
    for side in range(4):  # by two pixels
        beyond = crops.copy()
        beyond[7] = regions[7] + np.array([[-2, 0, 0, 0], [0, -2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]])[side]
        with pytest.raises(ValueError, match="a crop is not of what is stored"):
            stored_crops(beyond, regions, (31, 47))


@pytest.mark.parametrize("train", [True, False])
def test_pixels_are_close_to_the_streamed_ones(images, train):
    """Squeezed to about the mean size of the originals, crops differ by the second resampling and by rounding."""
    with create(images, load(images, 64), train=train) as ours, create(images, None, train=train) as theirs:
        for a, b in zip(ours.epoch(1), theirs.epoch(1), strict=True):
            assert a.images.dtype == torch.uint8
            assert a.images.is_contiguous(memory_format=torch.channels_last)
            difference = (a.images.int() - b.images.int()).abs().float()
            assert difference.mean() < 6
            mirrored = (a.images.flip(-1).int() - b.images.int()).abs().float()
            assert difference.mean() < mirrored.mean() / 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eval_crop", [1.0, 0.875])
def test_images_to_test_on_have_the_pixels_of_their_files_at_any_aspect(tmp_path, backend, eval_crop):
    """As `predict` shows them to the network: squeezed, a photo of 3:1 would have a third of its detail along 3."""
    images = photos.write(tmp_path, [(240, 720), (600, 200), (256, 256), (280, 372), (160, 284)])
    tested, size = replace(images, splits={"test": images.splits["train"]}), 112
    side = math.ceil(size / eval_crop)
    found = opening.decode(tested, placement.choose_placement(tested, "device", CPU, side), backend, CPU, 1)
    assert found.values.shape == (5, side, side, 3)
    how = {"size": size, "train": False, "eval_crop": eval_crop, "split": "test"}
    with create(tested, found, **how) as ours, create(tested, None, backend=backend, workers=1, **how) as theirs:
        for a, b in zip(ours.epoch(1), theirs.epoch(1), strict=True):
            difference = (a.images.int() - b.images.int()).abs().float()
            # With a crop stored pixels begin up to half a pixel beside it.
            assert difference.mean((1, 2, 3)).max() <= (0 if eval_crop == 1 else 10)
    with create(tested, found, split="test") as training, pytest.raises(ValueError, match="not of what is stored"):
        list(training.epoch(1))


def test_images_to_train_on_are_kept_whole(tmp_path):
    wide = photos.write(tmp_path, [(60, 120), (30, 60), (50, 50)])
    train, (other, *rest) = wide.splits["train"], wide.splits["train"].paths
    both = replace(wide, splits={"train": replace(train, paths=rest, labels=train.labels[1:], sizes=train.sizes[1:])})
    both = replace(both, splits=both.splits | {"test": train})  # of which two are trained on
    found = placement.choose_placement(both, "device", CPU, 40)
    assert found.squares == {other}
    assert dict(zip(sizes_of(both), found.regions(both).tolist(), strict=True)) == {
        other: [0, 30, 60, 60],
        rest[0]: [0, 0, 30, 60],
        rest[1]: [0, 0, 50, 50],
    }
    unused = placement.choose_placement(both, "device", CPU, 40, trains=False)
    assert (unused.squares, unused.size) == (set(sizes_of(both)), (40, 40))


def test_the_longer_side_of_images_to_train_on_has_its_detail_where_there_is_room(images, tmp_path, monkeypatch):
    wide = photos.write(tmp_path, [(60, 120), (30, 60), (50, 50)])
    told = ", each squeezed to 40 x 40 pixels, which blurs the longer side of images to train on: not with "
    for cache in ("auto", "device"):
        device = torch.device("cuda") if cache == "auto" else CPU
        room = {"cuda": 2 * 3 * 80 * 80 * 3, "cpu": 3 * 80 * 80 * 3}
        monkeypatch.setattr(placement, "free", lambda device, room=room: room[device.type])
        found = placement.choose_placement(wide, cache, device, 40)
        assert (found.device.type, found.size, found.detail) == (device.type, (80, 80), 1)
        assert str(found).endswith(", each squeezed to 80 x 80 pixels")
        room[device.type] -= 1
        found = placement.choose_placement(wide, cache, device, 40)
        assert (found.device.type, found.size, found.detail) == (device.type, (40, 40), 0.5)
        assert str(found).endswith(f"{told}--cache-size 80")
    room["cpu"] = 10**6
    for side in (40, 60, 80, 100):
        found = placement.choose_placement(wide, "device", CPU, 40, side)
        assert (found.size, found.detail) == ((side, side), min(1, side / 80))
        assert str(found).count("--cache-size 80") == (found.detail < placement.BLURRED)
    panorama = photos.write(tmp_path / "panorama", [(40, 200), (41, 205)])
    assert placement.choose_placement(panorama, "device", CPU, 40).size == (80, 80)


def test_images_of_one_size_equal_the_streamed_ones(equal):
    """Nothing is resampled to be stored; at that size without a crop nothing is at all."""
    found = opening.decode(equal, placement.choose_placement(equal, "device", CPU, 60), "torch", CPU, 1)
    assert found.values.shape == (20, 48, 56, 3)
    np.testing.assert_array_equal(found.values.numpy().reshape(-1), WholeImages.load(equal, 1).values)
    with create(equal, found) as ours, create(equal, None) as theirs:
        for a, b in zip(ours.epoch(1), theirs.epoch(1), strict=True):
            assert (a.images.int() - b.images.int()).abs().max() <= 1
    square = photos.write(equal.root / "square", [(32, 32)] * 12)
    found = opening.decode(square, placement.choose_placement(square, "device", CPU, 32), "torch", CPU, 1)
    with (
        create(square, found, train=False, eval_crop=1.0) as ours,
        create(square, None, train=False, eval_crop=1.0) as theirs,
    ):
        for a, b in zip(ours.epoch(1), theirs.epoch(1), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.standardised(RGB), b.standardised(RGB))


def test_a_batch_is_standardised_with_channels_chosen_and_jitter(images):
    sources = torch.tensor([2, -1, 0, 1])
    jitter = {"brightness": torch.linspace(0.8, 1.2, 8), "grayscale": torch.arange(8) % 2 == 0}
    with create(images, load(images, 64)) as batches:
        for batch in batches.epoch(1):
            got = batch.standardised(RGB, sources, **jitter)
            streamed = Batch(Streamed(batch.images), batch.labels, batch.indices, batch.total)
            assert got.shape == (8, 4, 32, 32)
            assert got.is_contiguous(memory_format=torch.channels_last)
            assert not got[:, 1].any()
            torch.testing.assert_close(got, streamed.standardised(RGB, sources, **jitter), atol=0.03, rtol=0)


def test_upside_down_comes_before_rotation(images):
    vflips, angles = torch.arange(8) % 2 == 0, torch.linspace(-40, 40, 8)
    with create(images, load(images, 64), augmentations=None) as batches:
        batch = next(batches.epoch(1))
    plain = batch.standardised(RGB)
    got = batch.standardised(RGB, vflips=vflips)
    assert torch.equal(got, torch.where(vflips[:, None, None, None], plain.flip(2), plain))
    assert got.is_contiguous(memory_format=torch.channels_last)
    streamed = Batch(Streamed(batch.images), batch.labels, batch.indices, batch.total)
    turned = batch.standardised(RGB, vflips=vflips, angles=angles)
    expected = streamed.standardised(RGB, vflips=vflips, angles=angles)
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (turned[inside] - expected[inside]).abs().mean() < 0.05
    assert (batch.standardised(RGB, angles=angles)[inside] - expected[inside]).abs().mean() > 0.5


def test_an_epoch_can_be_left_and_entered_in_the_middle(images):
    with create(images, load(images, 40)) as batches:
        whole = [batch.images for batch in batches.epoch(5)]
        next(batches.epoch(4))
        for a, b in zip(batches.epoch(5, start=2), whole[2:], strict=True):
            assert torch.equal(a.images, b)
        assert list(batches.epoch(5, start=len(batches))) == []


def test_files_are_not_read_again(images, tmp_path):
    alone = photos.write(tmp_path, photos.sizes(10))
    found = load(alone, 40)
    for path in alone.splits["train"].paths:
        (tmp_path / path).unlink()
    with create(alone, found, on_fault=pytest.fail) as batches:
        assert sum(len(batch) for batch in batches.epoch(0)) == 10


def test_files_that_fail_are_left_out(images, tmp_path):
    alone = photos.write(tmp_path, photos.sizes(10))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    found = load(alone, 40)
    assert list(found.faults) == ["3.png"]
    assert "\n" not in found.faults["3.png"]
    assert "3.png" not in found
    assert len(found) == 9
    with pytest.raises(ValueError, match=r"1 of 10 images are not in the store, such as 3\.png"):
        create(alone, found)


def test_only_bytes_can_be_resident(images):
    with pytest.raises(ValueError, match=r"\[1, 2, 2, 3\] torch.float32 of 1 images, wanted uint8 and 4 axes"):
        UniformImages(torch.zeros(1, 2, 2, 3), ["a"])


@pytest.mark.parametrize(
    ("cache", "size", "expected"),
    [("none", 40, None), ("auto", 40, (None, False)), ("host", 40, (None, False)), ("device", 40, ((40, 40), True))],
)
def test_on_the_cpu_images_stay_whole_unless_the_device_is_asked_for(images, cache, size, expected):
    found = placement.choose_placement(images, cache, CPU, size)
    assert (found and (found.size, found.resampled)) == expected


def test_images_of_one_small_size_are_not_resampled(equal):
    for size in (48, 60):
        found = placement.choose_placement(equal, "device", CPU, size)
        assert (found.size, found.resampled, found.form) == ((48, 56), False, "whole")
    found = placement.choose_placement(equal, "device", CPU, 47)
    assert (found.size, found.resampled, found.form) == ((47, 47), True, "47x47")
    assert str(found) == "images kept in memory: 0.1 MB, each squeezed to 47 x 47 pixels"


def test_what_fits_decides(images, equal, monkeypatch):
    """On a GPU, of which only the free memory is asked here."""
    gpu = torch.device("cuda")
    needed = 40 * 40 * 40 * 3
    room = {"cuda": 2 * needed, "cpu": 2 * needed}
    monkeypatch.setattr(placement, "free", lambda device: room[device.type])
    assert placement.choose_placement(images, "auto", gpu, 40).device == gpu
    room["cuda"] -= 2
    found = placement.choose_placement(images, "auto", gpu, 40)
    assert (found.device, found.size) == (CPU, (40, 40))
    room["cpu"] -= 2
    assert placement.choose_placement(images, "auto", gpu, 40) is None
    assert placement.choose_placement(images, "device", gpu, 40).device == gpu
    room["cuda"] = needed - 1
    with pytest.raises(UserError, match=r"--cache device: the images take 0\.2 MB, 0\.2 MB are free; use --cache auto"):
        placement.choose_placement(images, "device", gpu, 40)
    floats = replace(equal, dtype="float32")
    room["cpu"] = 10**9
    for cache in ("auto", "device", "host"):
        found = placement.choose_placement(floats, cache, gpu, 60)
        assert (found.device, found.size) == (CPU, None)


@pytest.mark.gpu
@pytest.mark.parametrize("kept_on", ["cuda", "cpu"])
def test_batches_on_the_gpu_equal_those_on_the_cpu(images, kept_on):
    found = load(images, 40)
    moved = UniformImages(found.values.to(kept_on), list(images.splits["train"].paths))
    with create(images, moved, device="cuda", workers=2) as ours, create(images, found) as theirs:
        for _ in range(3):
            batches = [batch.standardised(RGB) for batch in ours.epoch(1)]
            for a, b in zip(batches, theirs.epoch(1), strict=True):
                assert a.is_cuda
                torch.testing.assert_close(a.cpu(), b.standardised(RGB), atol=0.03, rtol=0)
