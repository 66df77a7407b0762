"""From uint8 images to a training batch in one pass, and the parameters of each image drawn by counter."""

from polychrome.kernels.augment.api import augment
from polychrome.kernels.augment.parameters import Parameters, Recipe, draw

__all__ = ["Parameters", "Recipe", "augment", "draw"]
