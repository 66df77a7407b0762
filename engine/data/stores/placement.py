"""Where decoded images are stored and in which form, by the memory available."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from polychrome.engine.data import sampling
from polychrome.engine.data.image_set import ImageSet, sizes_of
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError
from polychrome.engine.machine import memory

if TYPE_CHECKING:
    import torch

# The detail below which more is kept, or where that does not fit, it is told: random crops squeeze by as much.
BLURRED = 0.7


@dataclass(frozen=True)
class Placement:
    """Decoded images in the memory of `device`, each squeezed to `size` (height, width), or whole if `size` is None.

    `nbytes` is the memory that the images take; with `resampled` false all images have that size already. `squares` are
    the paths of squeezed images of which the central square alone is kept. `detail` is the share of the needed detail
    that the longer side of a squeezed image to train on has: the median.
    """

    device: torch.device
    size: tuple[int, int] | None
    nbytes: int
    resampled: bool = False
    squares: frozenset[str] = field(default=frozenset(), repr=False)
    detail: float = 1.0

    def regions(self, images: ImageSet) -> np.ndarray | None:
        """Return the part (top, left, height, width) of each image that is squeezed, int64 [images, 4]; None: all.

        Raises:
            ValueError: the set has not been scanned.
        """
        if not self.resampled:
            return None
        sizes = sizes_of(images)
        shapes = np.array(list(sizes.values()), np.int64).reshape(-1, 2)
        whole = np.concatenate([np.zeros_like(shapes), shapes], 1)
        square = np.array([path in self.squares for path in sizes], bool)
        return np.where(square[:, None], sampling.center_crops(shapes, 1.0), whole)

    @property
    def form(self) -> str:
        """The name of the form: "whole", also of images that all have one size, or the stored size."""
        return f"{self.size[0]}x{self.size[1]}" if self.resampled else "whole"

    def __str__(self) -> str:
        where = "on the GPU" if self.device.type == "cuda" else "in memory"
        size = f", each squeezed to {self.size[0]} x {self.size[1]} pixels" if self.resampled else ""
        if self.resampled and self.detail < BLURRED:
            wanted = ceil(self.size[0] / self.detail)
            size += f", which blurs the longer side of images to train on: not with --cache-size {wanted}"
        return f"images kept {where}: {amount(self.nbytes)}{size}"


def choose_placement(
    images: ImageSet, cache: str, device: torch.device, needed: int, side: int | None = None, trains: bool = True
) -> Placement | None:
    """Return the device and form to store a scanned set in; None where files are to be decoded in each epoch.

    Images are squeezed to `side` by `side`, unless all have one size whose short side is at most `side`. Of images that
    are not trained on, that is of all where nothing `trains`, the central square is kept at this size: as they are
    tested, they have the pixels of their files. On the CPU "host" leaves images whole, and float32 values are always
    whole and in host memory. "auto" takes the device where it is a GPU, else the host, if the images need at most half
    of the memory free there.

    Args:
        needed: the side that has all detail that training and tests use, of a square image.
        side: by default `needed`, or for images to train on that are `BLURRED` by it, up to twice as much, if it fits.

    Raises:
        UserError: the images do not fit where `cache` says.
    """
    if cache == "none":
        return None
    choices = _choices(images, device, needed, side, trains)
    wanted = {"auto": ("device", "host") if device.type == "cuda" else ("host",)}.get(cache, (cache,))
    for found in [each for name in wanted for each in choices.get(name, ())] or choices["host"]:
        room = free(found.device)
        if found.nbytes <= (room // 2 if cache == "auto" else room):
            return found
    if cache != "auto":
        raise UserError(
            f"--cache {cache}: the images take {amount(found.nbytes)}, {amount(room)} are free; "
            "use --cache auto or a smaller --cache-size"
        )
    return None


def free(device: torch.device) -> int:
    """Return the bytes that are free on a device, or in host memory."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()


def amount(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _choices(
    images: ImageSet, device: torch.device, needed: int, side: int | None, trains: bool
) -> dict[str, list[Placement]]:
    """Return what the memory of the device and of the host may have, what is wanted most first."""
    import torch

    host, sizes = torch.device("cpu"), sizes_of(images)
    whole = Placement(host, None, WholeImages.bytes_needed(images))
    if images.dtype != "uint8":
        return {"host": [whole]}
    training = set(images.splits["train"].paths) if trains and "train" in images.splits else set()
    detail = median(min(sizes[path]) / max(sizes[path]) for path in training) if training else 1.0
    sides = [needed] if side is None else [side]
    if side is None and detail < BLURRED:
        sides.insert(0, min(2 * needed, ceil(needed / detail)))
    distinct = set(sizes.values())
    common = next(iter(distinct)) if len(distinct) == 1 else None
    squeezed = []
    for each in sides:
        if common is not None and min(common) <= each:
            squeezed.append(Placement(device, tuple(map(int, common)), whole.nbytes))
        else:
            nbytes = len(sizes) * each * each * len(images.channels)
            kept = frozenset(sizes.keys() - training), min(1.0, detail * each / max(1, needed))
            squeezed.append(Placement(device, (each, each), nbytes, True, *kept))
    on_host = [whole] if device.type == "cpu" else [replace(each, device=host) for each in squeezed]
    return {"device": squeezed, "host": on_host}
