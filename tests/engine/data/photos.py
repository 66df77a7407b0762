"""Small sets of photos for the tests of loading."""

import numpy as np
import torch

from polychrome.engine.data import image_set
from polychrome.engine.data.batches import Reading
from polychrome.engine.data.sets import listing, scan
from tests.engine.data import image_kinds

CPU = torch.device("cpu")


def write(root, sizes, splits=(("train", 1.0),), workers=1):
    """Write a PNG of each (height, width) and return them as a scanned set; a split has a share from the start."""
    files = {
        f"{number}.png": image_kinds.encoded(image_kinds.picture(*size, seed=number), "PNG")
        for number, size in enumerate(sizes)
    }
    return scanned(root, image_kinds.write(root, files), splits)


def scanned(root, paths, splits=(("train", 1.0),)):
    """Return files as a scanned set of three classes."""
    parts = {
        name: image_set.Split(
            tuple(paths[: round(share * len(paths))]), tuple(np.arange(round(share * len(paths))) % 3)
        )
        for name, share in splits
    }
    return scan.apply(image_set.ImageSet(root, tuple("abc"), parts), scan.scan(root, paths, workers=1, cache=False))


def below(folder):
    """Return the paths of all images below a folder."""
    return list(listing.every_image(folder).splits["all"].paths)


def reading(root, paths, size, batch_size, workers, by_pillow=frozenset()):
    """Return what a reader of these files is made for."""
    split = image_set.Split(tuple(paths), (0,) * len(paths), ((size, size),) * len(paths))
    images = image_set.ImageSet(root, ("a",), {"all": split}, by_pillow=by_pillow)
    return Reading(images, "all", size, batch_size, CPU, workers)


def reading_of(images, size, batch_size):
    """Return what a reader of a scanned set's training files is made for."""
    return Reading(images, "train", size, batch_size, CPU, 1)


def sizes(count, seed=0, least=40, most=90):
    """Return `count` pairs of a height and a width."""
    return [tuple(pair) for pair in np.random.default_rng(seed).integers(least, most, (count, 2)).tolist()]
