"""Fixtures of the tests that train."""

import pytest

from polychrome.engine.data import loader
from polychrome.engine.data.image_set import ImageSet, Split


@pytest.fixture
def images(tmp_path):
    """40 training and 8 validation images of noise, of 4 classes."""
    splits = {
        name: Split(tuple(f"{name}{i}" for i in range(count)), tuple(i % 4 for i in range(count)), ((16, 16),) * count)
        for name, count in (("train", 40), ("val", 8))
    }
    return ImageSet(tmp_path, ("a", "b", "c", "d"), splits)


@pytest.fixture
def loaders(images):
    """Loaders of the training and of the validation `images`, 16 px, in batches of 8."""
    options = {"size": 16, "batch_size": 8, "backend": "synthetic"}
    with (
        loader.Loader(images, "train", train=True, **options) as train,
        loader.Loader(images, "val", train=False, **options) as val,
    ):
        yield train, val
