"""Stores of decoded images, as tests want them."""

import torch

from polychrome.engine.data import opening
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.stores.placement import Placement
from polychrome.engine.data.stores.uniform import UniformImages

CPU = torch.device("cpu")


def squeezed(images: ImageSet, side: int, backend: str = "torch", workers: int = 0, **options) -> UniformImages:
    """Return a scanned set decoded and squeezed to `side` by `side`, in host memory."""
    placement = Placement(CPU, (side, side), nbytes=0, resampled=True)
    return opening.decode(images, placement, backend, CPU, workers, **options)
