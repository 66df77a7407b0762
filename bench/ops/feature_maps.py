"""Feature maps of the benchmarks of spatial attention and the channel gate: sizes, layouts, data, memory passes."""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

SIZES = {
    "cuda": ((64, 256, 16, 16), (64, 64, 128, 128), (256, 256, 28, 28), (8, 512, 7, 7)),
    "cpu": ((8, 256, 16, 16), (2, 64, 128, 128), (8, 256, 28, 28), (8, 512, 7, 7)),
}
LAYOUTS = {
    "cuda": ((torch.bfloat16, torch.channels_last), (torch.bfloat16, torch.contiguous_format)),
    "cpu": ((torch.bfloat16, torch.channels_last), (torch.float32, torch.contiguous_format)),
}
# Passes of backward over a map: dy and x read for the gradient of the gate, then dy read again and dx written.
BACKWARD_PASSES = 4


class FeatureMap(NamedTuple):
    """A map [batch, channels, height, width] in a dtype and a memory format."""

    batch: int
    channels: int
    height: int
    width: int
    dtype: torch.dtype
    layout: torch.memory_format

    @property
    def name(self) -> str:
        """The sizes, as the tables show them."""
        return "x".join(map(str, self[:4]))

    @property
    def kind(self) -> str:
        """Names of dtype and layout in entries."""
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        return f"{str(self.dtype).removeprefix('torch.')} {layout}"

    @property
    def nbytes(self) -> int:
        """Bytes of the map."""
        return prod(self[:4]) * self.dtype.itemsize

    def forward_passes(self, l2_bytes: int) -> int:
        """Return the least passes of forward over a map of this size, on a GPU with an L2 cache of `l2_bytes`.

        The gate of any value needs a sum (or a maximum) over other values: x is read for the gate, read again to be
        multiplied, and y is written. The second read costs no memory traffic if x fits half the L2 cache of a GPU;
        half, because y goes through the cache too. On a CPU, `l2_bytes` is 0, and the second read is counted.
        """
        return 2 if self.nbytes <= l2_bytes / 2 else 3


class Data(NamedTuple):
    """The leaves of one call, the map first, and the gradient of its output."""

    leaves: tuple[Tensor, ...]
    grad: Tensor

    def to(self, dtype: torch.dtype) -> "Data":
        """Return the same numbers in another dtype."""
        return Data(tuple(leaf.detach().to(dtype).requires_grad_() for leaf in self.leaves), self.grad.to(dtype))


def feature_maps_on(device: str) -> list[FeatureMap]:
    """Return the maps to time on "cuda" or "cpu", which has smaller batches."""
    return [FeatureMap(*sizes, *layout) for layout in LAYOUTS[device] for sizes in SIZES[device]]


def data_of(like: FeatureMap, weights: list[tuple[int, ...]], device: str, seed: int = 0) -> Data:
    """Return normal numbers: a map, its gradient, and weights of these shapes, divided by the root of their fan-in.

    The largest channel of each pixel is raised by 1/4: for tied channels, `max` and `amax` differ in gradient.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    x, grad = (normal(*like[:4]) for _ in range(2))
    x.scatter_add_(1, x.argmax(1, keepdim=True), torch.full_like(x[:, :1], 0.25))
    maps = [each.to(like.dtype).contiguous(memory_format=like.layout) for each in (x, grad)]
    made = [(normal(*sizes) * prod(sizes[1:]) ** -0.5).to(like.dtype) for sizes in weights]
    return Data(tuple(leaf.requires_grad_() for leaf in (maps[0], *made)), maps[1])
