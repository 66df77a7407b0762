"""The op's arguments as one value, and the checks of their values."""

from typing import NamedTuple

import torch
from torch import Tensor

from polychrome.kernels.augment.geometry import clamped


class Arguments(NamedTuple):
    """The arguments of `polychrome::augment`; None for a step that is skipped. See the public function."""

    images: Tensor
    indices: Tensor | None
    crops: Tensor | None
    flips: Tensor | None
    vflips: Tensor | None
    angles: Tensor | None
    brightness: Tensor | None
    contrast: Tensor | None
    gamma: Tensor | None
    grayscale: Tensor | None
    channels: Tensor | None
    cutouts: Tensor | None
    mean: list[float]
    std: list[float]
    height: int
    width: int
    dtype: torch.dtype

    @property
    def per_sample(self) -> tuple[Tensor | None, ...]:
        """The parameters with a row per sample, from `indices` to `cutouts`."""
        return self[1:12]

    @property
    def jitter(self) -> tuple[Tensor | None, ...]:
        """Brightness, contrast, gamma and grayscale."""
        return self.brightness, self.contrast, self.gamma, self.grayscale

    @property
    def batch(self) -> int:
        """The number of samples."""
        return self.images.shape[0] if self.indices is None else self.indices.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self.height, self.width

    @property
    def resamples(self) -> bool:
        """Whether the output's pixels are interpolated."""
        return self.crops is not None or self.angles is not None or self.images.shape[1:3] != self.size

    def empty(self) -> Tensor:
        """Return the output's memory, [batch, channels, height, width] in `dtype`, channels_last."""
        channels = self.images.shape[3] if self.channels is None else self.channels.shape[1]
        shape = (self.batch, channels, *self.size)
        return torch.empty(shape, dtype=self.dtype, device=self.images.device, memory_format=torch.channels_last)


def check_values(given: Arguments) -> None:
    """Raise ValueError where a number on the CPU is out of range; on other devices the check would cost a wait."""
    if given.images.device.type != "cpu":
        return
    count, height, width, channels = given.images.shape
    if given.indices is not None:
        wrong = (given.indices < 0) | (given.indices >= count)
        refuse("indices", given.indices, wrong, f"0 to {count - 1}" if count else "none, as there are no images")
    if given.channels is not None:
        refuse("channels", given.channels, given.channels >= channels, f"at most {channels - 1}")
    for name in ("angles", "brightness", "contrast"):
        factor = getattr(given, name)
        if factor is not None:
            refuse(name, factor, ~factor.isfinite(), "finite")
    if given.gamma is not None:
        refuse("gamma", given.gamma, ~(given.gamma.isfinite() & (given.gamma > 0)), "finite and above 0")
    if given.crops is not None:
        empty = (clamped(given.crops, given.batch, given.images)[:, 2:] < 1).any(1)
        wanted = f"boxes (top, left, height, width) that meet the images of {height} x {width} pixels"
        refuse("crops", given.crops, empty, wanted)


def refuse(name: str, values: Tensor, wrong: Tensor, wanted: str) -> None:
    """Raise ValueError naming the first sample with a wrong value, if there is one."""
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name} must be {wanted}, got {values[tuple(place)].tolist()} in sample {place[0]}")
