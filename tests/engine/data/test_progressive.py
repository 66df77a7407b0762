"""Training images that grow from epoch to epoch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polychrome.engine.data import loader
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.readers import choice
from polychrome.engine.data.sets import scan
from polychrome.engine.data.sets.listing import read
from polychrome.engine.data.stores.whole import WholeImages
from tests.engine.data.stores import squeezed

GROWING = Augmentations(("crop", "flip"), epochs=5, progressive=0.5)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("full", "share", "epochs", "sizes"),
    [
        (84, 0.6, 30, [52] * 6 + [60] * 6 + [68] * 6 + [76] * 6 + [84] * 6),
        (84, 0.6, 5, [52, 60, 68, 76, 84]),
        (224, 0.5, 5, [112, 140, 168, 196, 224]),
        (84, 0.6, 2, [52, 84]),
        (84, 0.6, 1, [84]),
        (85, 1.0, 3, [85, 85, 85]),
        (16, 0.1, 5, [4, 4, 8, 12, 16]),
        (3, 0.1, 2, [3, 3]),
    ],
)
def test_sizes_grow_in_equal_steps_to_the_full_one(full, share, epochs, sizes):
    growing = Augmentations(epochs=epochs, progressive=share)
    assert [growing.size(epoch, full) for epoch in range(1, epochs + 1)] == sizes
    assert growing.size(epochs + 1, full) == full


@pytest.fixture(scope="module")
def images(stripes):
    found = read(stripes)
    found = replace(found, splits={"train": found.splits["train"]})
    return scan.apply(found, scan.scan(found.root, found.splits["train"].paths, 1))


@pytest.mark.parametrize("source", ["torch", "dali", "cached", "resident", "synthetic"])
def test_every_source_gives_the_size_of_the_epoch(images, source):
    store = None
    if source == "dali":
        pytest.importorskip("nvidia.dali")
    if source == "cached":
        store = WholeImages.load(images, 1)
    if source == "resident":
        store = squeezed(images, 40)
    backend = source if source in choice.BACKENDS else "torch"
    options = {"size": 32, "batch_size": 24, "backend": backend, "workers": 1, "store": store}
    with loader.Loader(images, "train", train=True, augmentations=GROWING, **options) as train:
        for epoch, size in zip((5, 1, 3), (32, 16, 24), strict=True):
            batches = list(train.epoch(epoch))
            assert {batch.shape for batch in batches} == {(24, 3, size, size)}
            for batch in batches:
                assert batch.images.shape == batch.standardised(train.channels).shape == (24, 3, size, size)
        small = next(iter(train.epoch(1))).images
    with loader.Loader(images, "train", train=False, augmentations=GROWING, **options) as test:
        assert next(iter(test.epoch(0))).shape == (24, 3, 32, 32)
    if source in ("cached", "torch"):
        options["size"] = 16
        with loader.Loader(images, "train", train=True, augmentations=Augmentations(), **options) as train:
            assert torch.equal(small, next(iter(train.epoch(1))).images)


def test_crops_are_those_of_full_size(images):
    plans, options = [], {"size": 32, "batch_size": 24, "train": True, "backend": "torch"}
    for augmentations in (GROWING, Augmentations()):
        with loader.Loader(images, "train", augmentations=augmentations, **options) as train:
            plans.append(train.requests(1))
    for small, full in zip(*plans, strict=True):
        assert np.array_equal(small.crops, full.crops)
        assert np.array_equal(small.indices, full.indices)
        assert (small.size, full.size) == (16, 32)
