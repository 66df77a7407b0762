import dataclasses
import importlib.util
import os

import numpy as np
import pytest
import torch
from PIL import Image

from polychrome.engine.channels.names import Channels
from polychrome.engine.data import image_set, loader, sampling
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.batches import Reading
from polychrome.engine.data.files import decode
from polychrome.engine.data.readers import choice
from polychrome.engine.data.readers.pillow import PillowReader
from polychrome.engine.data.sets import scan
from polychrome.engine.errors import UserError
from polychrome.kernels.augment import Recipe
from tests.engine.data import image_kinds

needs_dali = pytest.mark.skipif(choice.resolve("auto") != "dali", reason="NVIDIA DALI is not installed")
BOTH = [pytest.param("dali", marks=needs_dali), "torch"]
ALL = [*BOTH, "synthetic"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Every accepted kind of file, 41 or so images in four classes, under names with spaces and accents."""
    root = tmp_path_factory.mktemp("my images")
    paths = image_kinds.write(root, {f"{name} é.bin": content for name, content in image_kinds.accepted().items()})
    split = image_set.Split(tuple(paths), tuple(i % 4 for i in range(len(paths))))
    whole = image_set.ImageSet(root, tuple("abcd"), dict.fromkeys(("train", "val", "test"), split))
    return scan.apply(whole, scan.scan(root, paths, workers=1, cache=False))


def create(images, backend, **options):
    defaults = {"size": 48, "batch_size": 8, "train": True, "workers": 1, "seed": 3}
    return loader.Loader(images, options.pop("split", "train"), backend=backend, **defaults | options)


def first(images, count):
    """Return the set with only the first images in each split."""
    cut = {
        name: image_set.Split(split.paths[:count], split.labels[:count], split.sizes[:count])
        for name, split in images.splits.items()
    }
    return dataclasses.replace(images, splits=cut)


def drawn(split, scale, ratio):
    """Crops and flips of a split's images in epoch 1 under seed 3."""
    recipe = Recipe(scale=scale, ratio=ratio, flip=0.5)
    return sampling.crops_and_flips(recipe, np.arange(len(split.paths)), np.array(split.sizes), 3, 1)


def pixels(batches):
    return torch.cat([batch.images for batch in batches])


@needs_dali
@pytest.mark.parametrize("train", [True, False])
def test_backends_give_the_same_images(images, train):
    with create(images, "dali", train=train) as ours, create(images, "torch", train=train, workers=0) as theirs:
        for a, b in zip(ours.epoch(2), theirs.epoch(2), strict=True):
            np.testing.assert_array_equal(a.indices, b.indices)
            assert torch.equal(a.labels, b.labels)
            difference = (a.images.int() - b.images.int()).abs().float().mean((1, 2, 3))
            for index, value in zip(a.indices, difference, strict=True):
                rounded = images.splits["train"].paths[index].startswith(("png 16", "tiff palette"))
                assert value <= (1 if rounded else 0)


@needs_dali
def test_dalis_own_resize_and_flip_agree_with_torchs(images):
    """The pipeline that a GPU runs, built on the CPU."""
    from polychrome.engine.data.readers import dali

    with create(images, "torch", workers=0) as theirs:
        requests, expected = theirs.requests(0), list(theirs.epoch(0))
    files = [np.frombuffer(str(images.root / path).encode(), np.uint8) for path in images.splits["train"].paths]
    source = (dali.feed(files, request) for request in requests)
    pipeline = dali.resized(source, 48, "cpu", batch_size=8, num_threads=1, device_id=None)
    for batch in expected:
        ours = torch.from_dlpack(pipeline.run()[0].as_tensor()).permute(0, 3, 1, 2)
        difference = (ours.int() - batch.images.int()).abs().float()
        assert difference.mean((1, 2, 3)).max() < 1.0
        assert difference.max() <= 24  # single pixels at sharp edges


def test_the_torch_backend_is_the_definition_cropped_and_resized(images):
    from torchvision.transforms.v2 import functional

    split = images.splits["train"]
    crops, flips = drawn(split, (0.35, 1.0), (3 / 4, 4 / 3))
    with create(images, "torch", workers=0) as batches:
        for batch in batches.epoch(1):
            for image, index in zip(batch.images, batch.indices, strict=True):
                whole = torch.from_numpy(decode.rgb(images.root / split.paths[index]).copy()).permute(2, 0, 1)
                expected = functional.resized_crop(whole, *crops[index].tolist(), [48, 48], antialias=True)
                assert torch.equal(image, expected.flip(-1) if flips[index] else expected)


def test_crops_and_flips_happen_only_where_the_augmentations_say_so(images):
    split = images.splits["train"]
    crops, flips = drawn(split, (0.5, 0.6), (1, 2))
    centre, still = sampling.center_crops(np.array(split.sizes), 0.875), np.zeros(len(split.paths), bool)
    cases = {("crop", "flip"): (crops, flips), ("crop",): (crops, still), ("flip",): (centre, flips)}
    for names, (wanted_crops, wanted_flips) in (cases | {("vflip",): (centre, still)}).items():
        chosen = Augmentations(names, crop_scale=(0.5, 0.6), crop_ratio=(1, 2))
        with create(images, "synthetic", augmentations=chosen) as batches:
            for request in batches.requests(1):
                np.testing.assert_array_equal(request.crops, wanted_crops[request.indices])
                np.testing.assert_array_equal(request.flips, wanted_flips[request.indices])


def test_one_augmentation_at_a_time_changes_with_the_epoch(images):
    chosen = Augmentations(("flip", "crop"), one_at_a_time=True, epochs=4)
    with create(images, "synthetic", augmentations=chosen) as batches:
        flipped = [any(request.flips.any() for request in batches.requests(epoch)) for epoch in range(1, 5)]
        square = [
            all((request.crops[:, 2] == request.crops[:, 3]).all() for request in batches.requests(e))
            for e in range(1, 5)
        ]
    assert flipped == square == [True, True, False, False]


def test_evaluation_is_never_augmented(images):
    with create(images, "synthetic", train=False, augmentations=Augmentations(("crop", "flip"))) as batches:
        for request in batches.requests(1):
            assert not request.flips.any()
            assert (request.crops[:, 2] == request.crops[:, 3]).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_synthetic_images_have_the_sets_channels(images, dtype):
    five = Channels(tuple("abcde"), (10.0, 20.0, 30.0, 40.0, 50.0), (1.0,) * 5)
    with create(dataclasses.replace(images, channels=five, dtype=dtype), "synthetic") as batches:
        batch = next(batches.epoch(0))
        assert batches.channels == five
    assert batch.images.shape == (8, 5, 48, 48)
    assert batch.images.dtype == getattr(torch, dtype)
    if dtype == "float32":
        assert torch.allclose(batch.images.mean((0, 2, 3)), torch.tensor(five.mean), atol=0.1)


@pytest.mark.parametrize("backend", ALL)
def test_batches_have_the_promised_form(images, backend):
    with create(images, backend) as batches:
        assert batches.samples == len(images.splits["train"].paths)
        seen = list(batches.epoch(0))
        assert len(seen) == len(batches)
    for batch in seen:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch.indices), 3, 48, 48)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
        assert batch.indices.dtype == np.int64
        assert batch.labels.tolist() == [images.splits["train"].labels[i] for i in batch.indices]
        assert (batch.shape, batch.device) == (tuple(batch.images.shape), batch.images.device)
        assert len(batch) == batch.total == len(batch.indices)


@pytest.mark.parametrize("backend", ALL)
def test_evaluation_gives_every_image_once_in_list_order(images, backend):
    with create(first(images, 11), backend, split="test", train=False, batch_size=4) as batches:
        for _ in range(2):
            seen = list(batches.epoch(0))
            assert [len(batch.indices) for batch in seen] == [4, 4, 3]
            assert np.concatenate([batch.indices for batch in seen]).tolist() == list(range(11))


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (3, [3])])
def test_training_leaves_out_only_a_last_batch_of_one(images, count, sizes):
    with create(first(images, count), "synthetic", batch_size=4) as batches:
        assert [len(batch.indices) for batch in batches.epoch(0)] == sizes
        assert len(batches) == len(sizes)
    with create(first(images, count), "synthetic", batch_size=1) as batches:
        assert len(batches) == count


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(("train", "world_size"), [(True, 2), (True, 3), (False, 2), (False, 3)])
def test_ranks_share_out_each_batch_of_a_lone_process(images, backend, train, world_size):
    images = first(images, 31)
    with create(images, backend, train=train) as alone:
        whole = list(alone.epoch(2))
    ranks = []
    for rank in range(world_size):
        with create(images, backend, train=train, rank=rank, world_size=world_size) as batches:
            assert (batches.samples, len(batches)) == (31, 4)
            ranks.append(list(batches.epoch(2)))
    for number, expected in enumerate(whole):
        parts = [batches[number] for batches in ranks]
        sizes = [len(part) for part in parts]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
        assert {part.total for part in parts} == {len(expected)} == {expected.total}
        np.testing.assert_array_equal(np.concatenate([part.indices for part in parts]), expected.indices)
        assert torch.equal(torch.cat([part.labels for part in parts]), expected.labels)
        assert torch.equal(torch.cat([part.images for part in parts]), expected.images)


@pytest.mark.parametrize(("count", "world_size", "sizes"), [(11, 2, [4]), (12, 2, [4, 2]), (19, 4, [2, 2])])
def test_training_leaves_out_a_last_batch_of_fewer_than_two_for_each_rank(images, count, world_size, sizes):
    for rank in range(world_size):
        with create(first(images, count), "synthetic", rank=rank, world_size=world_size) as batches:
            assert [len(batch) for batch in batches.epoch(0)] == sizes
            assert len(batches) == len(sizes)


def test_a_rank_passes_over_evaluation_batches_that_it_has_no_image_of(images):
    seen = []
    for rank in range(4):
        with create(first(images, 10), "synthetic", train=False, rank=rank, world_size=4) as batches:
            seen.append([batch.indices.tolist() for batch in batches.epoch(0)])
    assert seen == [[[0, 1], [8]], [[2, 3], [9]], [[4, 5]], [[6, 7]]]


def test_ranks_need_two_images_each(images):
    with pytest.raises(UserError, match="has 3 usable images: training needs at least 4"):
        create(first(images, 3), "synthetic", world_size=2)
    with pytest.raises(UserError, match="batches of 8 images for 5 processes: each needs at least 2"):
        create(images, "synthetic", world_size=5)


@pytest.mark.parametrize("backend", ALL)
def test_seed_and_epoch_decide_the_batches(images, backend):
    def read(epoch, **options):
        with create(images, backend, **options) as batches:
            return pixels(batches.epoch(epoch))

    assert torch.equal(read(1), read(1))
    assert not torch.equal(read(1), read(2))
    assert not torch.equal(read(1), read(1, seed=4))


@pytest.mark.parametrize("backend", BOTH)
def test_workers_do_not_change_the_batches(images, backend):
    with create(images, backend, workers=1) as one, create(images, backend, workers=3) as three:
        assert torch.equal(pixels(one.epoch(1)), pixels(three.epoch(1)))


@pytest.mark.parametrize("backend", ALL)
def test_an_epoch_can_be_left_and_entered_in_the_middle(images, backend):
    with create(images, backend) as batches:
        whole = pixels(batches.epoch(5))
        next(batches.epoch(4))
        left = batches.epoch(4)
        next(left)
        assert torch.equal(pixels(batches.epoch(5, start=2)), whole[16:])
        assert list(left) == []
        assert list(batches.epoch(5, start=len(batches))) == []
        assert torch.equal(pixels(batches.epoch(5)), whole)


@pytest.mark.parametrize("backend", BOTH)
def test_batches_kept_are_not_overwritten(images, backend):
    with create(images, backend) as batches:
        kept = list(batches.epoch(0))
        copies = [batch.images.clone() for batch in kept]
        list(batches.epoch(1))
        assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))


def test_evaluation_crops_the_central_square(images):
    split = images.splits["train"]
    index = split.paths.index("png gray é.bin")
    with create(images, "torch", workers=0, train=False, eval_crop=0.5, size=46, batch_size=99) as batches:
        (batch,) = batches.epoch(0)
    whole = decode.rgb(images.root / split.paths[index])
    np.testing.assert_array_equal(batch.images[index].permute(1, 2, 0).numpy(), whole[23:69, 37:83])


def test_synthetic_images_need_no_files(tmp_path):
    split = image_set.Split(("none.jpg",) * 10, (0, 1) * 5)
    images = image_set.ImageSet(tmp_path, ("a", "b"), {"train": split})
    with create(images, "synthetic") as batches:
        assert [len(batch.indices) for batch in batches.epoch(0)] == [8, 2]
    with pytest.raises(ValueError, match="has no image sizes"):
        create(images, "torch")


def test_faults_are_the_users(images, monkeypatch):
    with pytest.raises(UserError, match="has 1 usable images: training needs at least 2"):
        create(first(images, 1), "synthetic")
    with pytest.raises(UserError, match="backend must be one of auto, dali, torch, synthetic, got 'ffcv'"):
        choice.resolve("ffcv")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choice.resolve("auto") == "torch"
    with pytest.raises(UserError, match="backend dali needs NVIDIA DALI: pip install nvidia-dali"):
        choice.resolve("dali")


@needs_dali
def test_auto_is_dali_where_it_is_installed():
    assert choice.resolve("auto") == "dali"


@pytest.mark.gpu
@needs_dali
@pytest.mark.parametrize("train", [True, False])
def test_dali_on_the_gpu_agrees_with_torch(images, train):
    with create(images, "dali", train=train, device="cuda") as ours, create(images, "torch", train=train) as theirs:
        for _ in range(2):
            for a, b in zip(ours.epoch(0), theirs.epoch(0), strict=True):
                assert a.images.is_cuda
                assert a.labels.is_cuda
                assert a.images.is_contiguous(memory_format=torch.channels_last)
                difference = (a.images.cpu().int() - b.images.int()).abs().float().mean((1, 2, 3))
                assert difference.max() < 3


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_file_names_need_not_be_utf8(tmp_path, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(np.full((20, 20, 3), 77, np.uint8)).save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", tmp_path / name)
    images = image_set.ImageSet(tmp_path, ("a",), {"test": image_set.Split((name,), (0,))})
    images = scan.apply(images, scan.scan(tmp_path, [name], cache=False))
    with loader.Loader(images, "test", size=16, batch_size=1, train=False, backend=backend) as batches:
        (batch,) = batches.epoch(0)
    assert batch.images.eq(77).all()


def test_a_reader_goes_on_with_an_epoch_while_another_has_begun(images):
    reader = PillowReader(Reading(images, "train", 32, 2, torch.device("cpu"), 0))
    with loader.Loader(images, "train", size=32, batch_size=2, train=False) as batches:
        requests = batches.requests(0)[:3]
    wanted = [batch.source.images for batch in reader.read(requests)]
    earlier = reader.read(requests)
    found = [next(earlier).source.images]
    next(reader.read(requests[::-1]))
    found += [batch.source.images for batch in earlier]
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
