"""Requests for batches, the decoded batches that readers return, and their standardisation for a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.kernels import augment
from polychrome.kernels.augment.reference import selected


class Reading(NamedTuple):
    """A reader's task: the images of a split, the side they are resized to, and the device of the batches.

    size: height and width in pixels, where a `BatchRequest` names no other. workers: threads, or processes of the torch
    backend. seed: of images that are not read but made.
    """

    images: ImageSet
    split: str
    size: int
    batch_size: int
    device: torch.device
    workers: int = 1
    seed: int = 0

    @property
    def chosen(self) -> Split:
        """The files of the split, their labels and sizes."""
        return self.images.splits[self.split]


@dataclass(frozen=True)
class BatchRequest:
    """The images, crops and flips of one batch: int64 [batch] indices, int64 [batch, 4] crops, bool [batch] flips.

    total: how many images the batch has over all ranks. size: height and width to resize to; 0: the reader's own. All
    requests of an epoch have the same size.
    """

    indices: np.ndarray
    crops: np.ndarray
    flips: np.ndarray
    total: int = 0
    size: int = 0


@dataclass(frozen=True)
class Streamed:
    """Images of a batch, uint8 or float32 [batch, channels, size, size], channels last in memory."""

    images: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width)."""
        return tuple(self.images.shape)

    def standardised(self, channels: Channels, sources: Tensor | None = None, **parameters: Tensor) -> Tensor:
        """Return the batch standardised per channel, float32 channels_last; see `Batch.standardised`."""
        return normalise(self.images, channels, sources, **parameters)

    def __getitem__(self, rows: Tensor) -> Streamed:
        return Streamed(self.images[rows])


@dataclass(frozen=True)
class Rendering:
    """A batch that a kernel makes from stored images.

    stored: uint8 [count, height, width, channels]. On the same device are: indices int64 [batch], each image's
    index among the stored images; crops int32 [batch, 4] of (top, left, height, width) in stored pixels; flips bool
    [batch].
    """

    stored: Tensor
    indices: Tensor
    crops: Tensor
    flips: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width)."""
        return len(self.indices), self.stored.shape[3], self.size, self.size

    @property
    def images(self) -> Tensor:
        """uint8 [batch, channels, size, size], channels last in memory; made anew at each call."""
        shown = augment(self.stored, self.crops, self.flips, size=self.size, indices=self.indices)
        return shown.mul_(255).round_().to(torch.uint8)

    def standardised(self, channels: Channels, sources: Tensor | None = None, **parameters: Tensor) -> Tensor:
        """Return the batch standardised per channel, float32 channels_last; see `Batch.standardised`."""
        statistics = {"mean": channels.mean, "std": channels.std}
        given = {"channels": sources, "size": self.size, "indices": self.indices}
        return augment(self.stored, self.crops, self.flips, **given, **statistics, **parameters)

    def __getitem__(self, rows: Tensor) -> Rendering:
        return Rendering(self.stored, self.indices[rows], self.crops[rows], self.flips[rows], self.size)


Source = Streamed | Rendering


class DecodedBatch(NamedTuple):
    """The images of one batch and, by position in the batch, a line on why a file could not be read.

    The pixels at these positions are undefined.
    """

    source: Source
    faults: dict[int, str]


@dataclass(frozen=True)
class Batch:
    """Some images of a split, a rank's share of a batch.

    source: the images, or a `Rendering` that makes them from stored images.
    labels: int64 [batch], on the device.
    indices: int64 [batch], a numpy array, the images' positions in the split.
    total: how many images the batch has over all ranks.
    drawn: arguments of `kernels.augment` that the epoch's recipe draws for each image beside crop and flip, by name,
        on the device.
    present: bool [batch, channels], on the device, the channels that each image has; None where all have all.
    """

    source: Source
    labels: Tensor
    indices: np.ndarray
    total: int
    drawn: dict[str, Tensor] = field(default_factory=dict)
    present: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.labels.device

    @property
    def images(self) -> Tensor:
        """uint8 or float32 [batch, channels, size, size] of the values stored, channels last in memory.

        A batch of stored images is cropped, mirrored and resized at each call.
        """
        return self.source.images

    def standardised(self, channels: Channels, sources: Tensor | None = None, **parameters: Tensor) -> Tensor:
        """Return the images [batch, channels, size, size] standardised per channel, float32, channels_last.

        Channels that an image lacks are zero.

        Args:
            channels: the channels of the set, with mean and deviation.
            sources: int64 [batch, out] or [out], the channel of each output; negative: absent, zero.
            parameters: `vflips`, `brightness`, `cutouts` and, for uint8 images, `angles`, `contrast`, `gamma` and
                `grayscale`, see `kernels.augment`. Brightness does not clamp float32 images.
        """
        return self.source.standardised(channels, self.sources(sources), **parameters)

    def sources(self, wanted: Tensor | None = None) -> Tensor | None:
        """Return `wanted`, sources as in `standardised`, negative where an image lacks the channel.

        None asks for every channel in its place, and is returned where all images have all.
        """
        if self.present is None:
            return wanted
        count, channels = self.present.shape
        wanted = torch.arange(channels, device=self.device) if wanted is None else wanted
        wanted = wanted.expand(count, -1)
        return wanted.masked_fill(~self.present.gather(1, wanted.clamp_min(0).long()), -1)

    def rows(self, chosen: np.ndarray) -> Batch:
        """Return the batch of the rows `chosen`, int64; a row may be chosen several times."""
        rows = torch.from_numpy(chosen).to(self.device)
        drawn = {name: values[rows] for name, values in self.drawn.items()}
        present = None if self.present is None else self.present[rows]
        return Batch(self.source[rows], self.labels[rows], self.indices[chosen], self.total, drawn, present)


def normalise(
    images: Tensor,
    channels: Channels = RGB,
    sources: Tensor | None = None,
    **parameters: Tensor,
) -> Tensor:
    """Return images [batch, channels, height, width] standardised per channel, float32, channels_last.

    Args:
        images: [batch, channels, height, width], uint8, or float32 of the values stored.
        sources: int64 [batch, out] or [out], the channel of each output; negative: absent, zero.
        parameters: further arguments of `kernels.augment` for uint8 images; for others, `vflips`, `cutouts` and
            `brightness` alone, which then does not clamp, as the largest value is not known.

    Raises:
        ValueError: float32 images come with another parameter.
    """
    if images.dtype == torch.uint8:
        arguments = {"mean": channels.mean, "std": channels.std, "channels": sources}
        return augment(images.permute(0, 2, 3, 1), **arguments, **parameters)
    if (vflips := parameters.pop("vflips", None)) is not None:
        images = torch.where(vflips[:, None, None, None], images.flip(2), images)
    if (brightness := parameters.pop("brightness", None)) is not None:
        images = images * brightness.view(*brightness.shape, *[1] * (4 - brightness.dim()))
    cutouts = parameters.pop("cutouts", None)
    if parameters:
        raise ValueError(f"only uint8 images have {', '.join(parameters)}, not {images.dtype}")
    mean, std = _statistics(channels, images.device)
    x = selected((images - mean) / std, sources, cutouts)
    return x.contiguous(memory_format=torch.channels_last)


@cache
def _statistics(channels: Channels, device: torch.device) -> Tensor:
    """Return mean and deviation, [2, channels, 1, 1] float32; cached, because a copy makes the host wait."""
    return torch.tensor([channels.mean, channels.std], device=device)[:, :, None, None]


def gathered(x: Tensor, sources: Tensor) -> Tensor:
    """Return the channels of x [batch, channels, height, width] that `sources` [batch, out] or [out] names.

    Absent channels, negative in `sources`, are zero.
    """
    return selected(x, sources, None).contiguous(memory_format=torch.channels_last)
