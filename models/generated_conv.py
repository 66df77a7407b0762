"""Convolutions whose kernels a network makes for each sample and channel, for any number of channels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from polychrome.kernels.modules import PerSampleConv2d


class AveragedConv2d(nn.Module):
    """Convolve each channel with the kernel given for it and average over the present channels. No parameters."""

    def __init__(self, stride: int = 1, padding: int = 0):
        super().__init__()
        self.conv = PerSampleConv2d(stride, padding)

    def forward(self, x: Tensor, kernels: Tensor, mask: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to [batch, out_channels, out_height, out_width].

        kernels: [batch, channels, out_channels, kernel_height, kernel_width]; mask: [batch, channels] bool, and x is
        zero where the mask is false. Padded with zeros.
        """
        kernels = kernels / present(mask)[:, :, None, None, None].to(kernels.dtype)
        return self.conv(x, kernels.transpose(1, 2).contiguous())


def kernels_of_channels(generator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the kernels, [batch, channels, ...], that `generator` makes from each single channel of x.

    x: [batch, channels, height, width]. `generator` maps [n, 1, height, width] to [n, ...].
    """
    return generator(x.flatten(0, 1).unsqueeze(1)).unflatten(0, x.shape[:2])


def without_absent(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return x with its absent channels set to zero, and the mask, by default all true.

    Raises:
        TypeError: `mask` is not bool.
        ValueError: `mask` is not [batch, channels].
    """
    if mask is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {mask.dtype}")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask must be [batch, channels] = {list(x.shape[:2])}, got {list(mask.shape)}")
    return x.masked_fill(~mask[:, :, None, None], 0), mask


def present(mask: Tensor) -> Tensor:
    """Return the number of present channels, [batch, 1], at least 1."""
    return mask.sum(1, keepdim=True).clamp(min=1)
