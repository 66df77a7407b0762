"""Fixtures of the tests that train."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from polychrome.engine.channels.names import RGB
from polychrome.engine.data import loader
from polychrome.engine.data.arrangement import Arrangement
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
    with _made(images) as made:
        yield made


@pytest.fixture
def sensors(images):
    """Loaders of the same images, of which a third has all channels, a third the first two, and a third the last."""
    sources = ((0, 1, 2), (0, 1, -1), (-1, -1, 0))
    paths = [path for split in images.splits.values() for path in split.paths]
    arrangements = {path: Arrangement(sources[int(path.lstrip("trainvl")) % 3]) for path in paths}
    channels = replace(RGB, sensors=((0, 1, 2), (0, 1), (2,)))
    with _made(replace(images, channels=channels, arrangements=arrangements)) as made:
        yield made


@contextmanager
def _made(images):
    options = {"size": 16, "batch_size": 8, "backend": "synthetic"}
    with (
        loader.Loader(images, "train", train=True, **options) as train,
        loader.Loader(images, "val", train=False, **options) as val,
    ):
        yield train, val
