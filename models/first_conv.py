"""The first convolution of networks for three channels, made for other channel counts."""

import warnings

from torch import nn


def for_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """Return a convolution like `conv`, ungrouped, with torch's initial weights; `conv` itself where it fits."""
    if conv.in_channels == in_channels:
        return conv
    geometry = {"stride": conv.stride, "padding": conv.padding, "bias": conv.bias is not None}
    return nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, **geometry)


def tell_untrained(options: dict) -> None:
    """Warn where torchvision was asked for trained weights by `options`, and the first convolution has none of them."""
    if options.get("weights") or options.get("pretrained"):
        warnings.warn(
            "the first convolution is drawn anew: torchvision's trained weights are for 3 channels and its own stem. "
            "Train it, or make the model with in_channels=3 and without small_stem",
            stacklevel=4,
        )
