"""Where decoded images are stored and in which form, by the memory available."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polychrome.engine.data.image_set import ImageSet, sizes_of
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError
from polychrome.engine.machine import memory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Placement:
    """Decoded images in the memory of `device`, each squeezed to `size` (height, width), or whole if `size` is None.

    `nbytes` is the memory that the images take; with `resampled` false all images have that size already.
    """

    device: torch.device
    size: tuple[int, int] | None
    nbytes: int
    resampled: bool = False

    @property
    def form(self) -> str:
        """The name of the form: "whole", also of images that all have one size, or the stored size."""
        return f"{self.size[0]}x{self.size[1]}" if self.resampled else "whole"

    def __str__(self) -> str:
        where = "on the GPU" if self.device.type == "cuda" else "in memory"
        size = f", each squeezed to {self.size[0]} x {self.size[1]} pixels" if self.resampled else ""
        return f"images kept {where}: {amount(self.nbytes)}{size}"


def choose_placement(images: ImageSet, cache: str, device: torch.device, size: int) -> Placement | None:
    """Return the device and form to store a scanned set in; None where files are to be decoded in each epoch.

    Images are squeezed to `size` by `size`, unless all have one size whose short side is at most `size`. On the CPU
    "host" leaves images whole, and float32 values are always whole and in host memory. "auto" takes the device where it
    is a GPU, else the host, if the images need at most half of the memory free there.

    Raises:
        UserError: the images do not fit where `cache` says.
    """
    if cache == "none":
        return None
    choices = _choices(images, device, size)
    wanted = {"auto": ("device", "host") if device.type == "cuda" else ("host",)}.get(cache, (cache,))
    for name in [name for name in wanted if name in choices] or ["host"]:
        found = choices[name]
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


def _choices(images: ImageSet, device: torch.device, size: int) -> dict[str, Placement]:
    import torch

    host, sizes = torch.device("cpu"), sizes_of(images)
    whole = Placement(host, None, WholeImages.bytes_needed(images))
    if images.dtype != "uint8":
        return {"host": whole}
    distinct = set(sizes.values())
    common = next(iter(distinct)) if len(distinct) == 1 else None
    if common is not None and min(common) <= size:
        squeezed = Placement(device, tuple(map(int, common)), whole.nbytes)
    else:
        squeezed = Placement(device, (size, size), len(sizes) * size * size * len(images.channels), resampled=True)
    on_host = whole if device.type == "cpu" else Placement(host, squeezed.size, squeezed.nbytes, squeezed.resampled)
    return {"device": squeezed, "host": on_host}
