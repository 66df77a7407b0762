"""The first convolution of networks for three channels, made for other channel counts."""

from torch import nn


def for_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """Return a convolution like `conv`, ungrouped, with torch's initial weights; `conv` itself where it fits."""
    if conv.in_channels == in_channels:
        return conv
    geometry = {"stride": conv.stride, "padding": conv.padding, "bias": conv.bias is not None}
    return nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, **geometry)
