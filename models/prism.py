"""Shallow networks of large kernels, for any channels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polychrome.kernels.modules import DynamicConv2d, SpatialAttention
from polychrome.models.any_channel_conv import AnyChannelConv2d
from polychrome.models.blocks import norm_relu

ALIKE = 0.9


class Prism(nn.Module):
    """Four weight layers between an image of any channels and its classifier.

    `AnyChannelConv2d` k7 s2 p3 (any channels -> widths[0]), BN, ReLU, maxpool 3 s2 p1, then three `Branches`, each one
    layer deep: a conv k3 beside a depthwise conv with large kernels, their maps side by side; maxpool 2 after the
    first. GAP, dropout, FC. Height and width: at least 5.

    The defaults are `prism4`, 2,684,018 parameters with 3 channels and 50 classes.

    Args:
        widths: channels after the stem and of the three k3 convolutions.
        experts: of the stem and of the three k3 convolutions; 1 makes a plain convolution, more a dynamic one. The
            experts of a layer start nearly equal, so that training begins like that of a plain convolution. The routing
            that mixes them is no layer of the path.
        large_kernels: heights and widths of the depthwise kernels, odd; 0 leaves a branch out.
        attention: whether spatial attention k7 follows each of the branches: a gate beside the path, or another layer
            of it, as one counts.
        fixed_places: whether a mask tells which channels are present, and not only how many: see `AnyChannelConv2d`. A
            tensor of fewer channels then needs `channels`.
        plain_stem: whether the stem is an `nn.Conv2d`; the network then takes exactly `in_channels` channels, and
            `any_channels` is False.

    Raises:
        ValueError: there are not as many widths, experts or kernels as layers, a large kernel is even, or `plain_stem`
            is given with `fixed_places` or experts of the stem.
    """

    def __init__(
        self,
        num_classes: int = 50,
        in_channels: int = 3,
        *,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        experts: tuple[int, int, int, int] = (1, 1, 1, 1),
        large_kernels: tuple[int, int, int] = (9, 9, 7),
        attention: bool = False,
        dropout: float = 0.2,
        fixed_places: bool = False,
        plain_stem: bool = False,
    ):
        super().__init__()
        for name, given, count in (("widths", widths, 4), ("experts", experts, 4), ("large_kernels", large_kernels, 3)):
            if len(given) != count:
                raise ValueError(f"{name} must be {count} numbers, got {given}")
        if any(size and size % 2 == 0 for size in large_kernels):
            raise ValueError(f"large_kernels must be odd, or 0 for none, got {large_kernels}")
        if plain_stem and (fixed_places or experts[0] != 1):
            raise ValueError(
                "plain_stem has neither places nor experts: fixed_places must be False and the first of experts 1, "
                f"got fixed_places={fixed_places} and experts={experts}"
            )
        self.any_channels, self.fixed_places = not plain_stem, fixed_places
        channels, geometry = widths[0], {"stride": 2, "padding": 3}
        if plain_stem:
            self.stem = nn.Conv2d(in_channels, channels, 7, **geometry)
        else:
            self.stem = AnyChannelConv2d(
                in_channels, channels, 7, **geometry, experts=experts[0], fixed_places=fixed_places
            )
        layers = [nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        for number, sizes in enumerate(zip(widths[1:], experts[1:], large_kernels, strict=True)):
            branches = Branches(channels, *sizes)
            channels = branches.out_channels
            layers += [branches, *[nn.MaxPool2d(2)] * (number == 0), *[SpatialAttention(7)] * attention]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, num_classes)
        )
        bring_experts_together(self)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, channels: Tensor | Sequence[float] | None = None
    ) -> Tensor:
        """Map [batch, any channels, height, width] to logits [batch, num_classes].

        With `mask`, [batch, channels] bool, each sample's result depends on its present channels alone (in evaluation;
        in training, batch normalisation takes its statistics over the whole batch). `channels` gives the positions of
        x's channels among the `in_channels` the network is made for: see `AnyChannelConv2d`.

        Raises:
            ValueError: mask or channels do not fit x, or are given with `plain_stem`.
        """
        if not self.any_channels and (mask is not None or channels is not None):
            raise ValueError("with plain_stem all channels are present: mask and channels must be None")
        stem = self.stem(x, mask, channels) if self.any_channels else self.stem(x)
        return self.head(self.features(stem))


class Branches(nn.Module):
    """Conv k3 and depthwise conv k`large_kernel` of the same maps, each with BN and ReLU, side by side.

    [batch, in_channels, h, w] -> [batch, width + in_channels, h, w]; with `large_kernel` 0, without the depthwise
    convolution, -> [batch, width, h, w].
    """

    def __init__(self, in_channels: int, width: int, experts: int, large_kernel: int):
        super().__init__()
        self.small = _conv_norm_relu(in_channels, width, 3, experts=experts)
        self.large = None
        self.out_channels = width
        if large_kernel:
            self.large = _conv_norm_relu(in_channels, in_channels, large_kernel, groups=in_channels)
            self.out_channels += in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, height, width]."""
        return self.small(x) if self.large is None else torch.cat([self.small(x), self.large(x)], 1)


def prism4_small(num_classes: int = 50, in_channels: int = 3, **options) -> Prism:
    """Return a `Prism` of 421,362 parameters with 3 channels and 50 classes; `options` go to it."""
    return Prism(num_classes, in_channels, **{"widths": (32, 64, 96, 160)} | options)


def _conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, experts: int = 1
) -> nn.Sequential:
    geometry = {"padding": kernel_size // 2, "groups": groups, "bias": False}
    if experts == 1:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, **geometry)
    else:
        conv = DynamicConv2d(in_channels, out_channels, kernel_size, **geometry, experts=experts)
    return norm_relu(conv)


@torch.no_grad()
def bring_experts_together(model: nn.Module) -> None:
    """Move the experts of each dynamic convolution nine tenths of the way to its first expert."""
    for module in model.modules():
        if isinstance(module, DynamicConv2d):
            for experts in (module.weight, module.bias):
                if experts is not None:
                    experts.lerp_(experts[:1].clone(), ALIKE)
