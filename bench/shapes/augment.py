"""The calls of `augment` that are timed, their random data, and the bytes they have to move."""

from typing import NamedTuple

import torch
from torch import Tensor

from polychrome.kernels.augment import Parameters, Recipe, draw
from polychrome.kernels.augment.geometry import clamped

# Sides in pixels of the resident images and of the output.
SIDE, SIZE = 256, 224
COUNTS = {"cuda": 1024, "cpu": 16}
BATCHES = {"cuda": (64, 512), "cpu": (8,)}
RECIPES = {
    "plain": Recipe(scale=(0.35, 1.0), flip=0.5),
    "whole": Recipe(
        scale=(0.35, 1.0),
        flip=0.5,
        degrees=15,
        brightness=0.2,
        contrast=0.2,
        gamma=0.2,
        grayscale=0.2,
        cutout=0.25,
        channels="subset",
    ),
}


class Call(NamedTuple):
    """The arguments of one call; images are uint8 [count, height, width, channels] and indices name distinct ones."""

    images: Tensor
    indices: Tensor
    drawn: Parameters
    mean: list[float]
    std: list[float]
    size: int
    dtype: torch.dtype

    @property
    def arguments(self) -> dict:
        """What `augment` takes besides the images."""
        statistics = {"mean": self.mean, "std": self.std}
        return {"indices": self.indices, "size": self.size, "dtype": self.dtype, **statistics, **self.drawn._asdict()}

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.images.shape[3] if self.drawn.channels is None else self.drawn.channels.shape[1]

    @property
    def boxes(self) -> Tensor:
        """The crops as far as they lie in the images, (top, left, height, width), int64 [batch, 4]."""
        return clamped(self.drawn.crops, len(self.indices), self.images)

    def samples(self, start: int, stop: int) -> "Call":
        """Return the call for a part of the batch."""
        rows = Parameters(*(None if value is None else value[start:stop] for value in self.drawn))
        return self._replace(indices=self.indices[start:stop], drawn=rows)

    def to(self, dtype: torch.dtype) -> "Call":
        """Return the call for an output in another dtype."""
        return self._replace(dtype=dtype)

    def forward_bytes(self) -> int:
        """Return the least bytes that the call moves.

        Every pixel inside a sample's crop has a weight above zero in some output pixel, because the output is nowhere
        coarser than its filter: with all channels, height * width * channels bytes of each crop, cut at the image's
        edge, are read, once because the samples are of different images. Every output value is written, and the
        parameters are read, mean and std as float32. With the whole recipe this is what whole crops take, an upper
        estimate: rotated samples leave the corners of the crop out, and pixels cut out need not be read.
        """
        channels = self.images.shape[3]
        read = int(self.boxes[:, 2:].prod(1).sum()) * channels
        written = len(self.indices) * self.size**2 * self.out_channels * self.dtype.itemsize
        parameters = sum(value.nbytes for value in (self.indices, *self.drawn) if value is not None)
        return read + written + parameters + 2 * 4 * channels


class Shape(NamedTuple):
    """A batch of SIDE x SIDE images made into one of SIZE x SIZE by one of RECIPES."""

    batch: int
    channels: int
    dtype: torch.dtype
    recipe: str = "plain"

    @property
    def name(self) -> str:
        """What tells this call from others of its dtype."""
        return f"{self.batch}x{SIDE}x{SIDE}x{self.channels} to {SIZE}{'' if self.recipe == 'plain' else ' whole'}"

    @property
    def key(self) -> str:
        """What tells this call from all others: dtype and layout of the output, and the name."""
        return f"{str(self.dtype).removeprefix('torch.')} channels_last {self.name}"

    def call(self, device: str, seed: int = 0, blank: bool = False) -> Call:
        """Return random bytes as resident images, the batch's places among them, and parameters drawn for these.

        `blank`: as many images as on a GPU, all zero, which takes neither time nor memory on the host.
        """
        generator = torch.Generator(device).manual_seed(seed)
        count = COUNTS["cuda" if blank else device]
        sizes = (count, SIDE, SIDE, self.channels)
        if blank:
            images = torch.zeros(sizes, dtype=torch.uint8, device=device)
        else:
            images = torch.randint(256, sizes, dtype=torch.uint8, device=device, generator=generator)
        indices = torch.randperm(count, device=device, generator=generator)[: self.batch]
        drawn = draw(RECIPES[self.recipe], indices, (SIDE, SIDE), seed, 0, (SIZE, SIZE), self.channels)
        mean = torch.linspace(0.4, 0.5, self.channels).tolist()
        std = torch.linspace(0.2, 0.25, self.channels).tolist()
        return Call(images, indices, drawn, mean, std, SIZE, self.dtype)


def shapes_on(device: str) -> list[Shape]:
    """Return the shapes to time on "cuda" or "cpu", those of the plain recipe first."""
    if device == "cuda":
        plain = [Shape(batch, channels, torch.bfloat16) for channels in (3, 13) for batch in BATCHES[device]]
        return [*plain, Shape(64, 3, torch.bfloat16, "whole")]
    kinds = ((3, torch.float32), (3, torch.bfloat16), (13, torch.float32))
    plain = [Shape(batch, *kind) for kind in kinds for batch in BATCHES[device]]
    return [*plain, Shape(8, 3, torch.float32, "whole")]
