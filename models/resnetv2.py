"""The pre-activation ResNet-50 of Big Transfer, one of report E's networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((3, 256), (4, 512), (6, 1024), (3, 2048))  # blocks, channels
NORM_GROUPS = 32


def resnetv2(num_classes: int = 50, in_channels: int = 3) -> nn.Module:
    """Return BiT's ResNet-50, "R50x1" (Kolesnikov et al. 2020), untrained.

    23,602,802 parameters with 3 channels and 50 classes, 25,549,352 with 1000. Report E tried it on CIFAR-100; .68-.71
    validation accuracy is its range for this and `vgg_resnet_sum` and `vgg_resnet_concat`, all augmentations at once.
    Any height and width.

    It is timm's `resnetv2_50x1_bit` in structure and parameter names, so that each loads the other's state dict, and is
    used whether or not timm is installed, so that the name always means the same network. Left open in the report: the
    initial weights (timm's: Kaiming normal by fan-out, the head's from a normal distribution with deviation .01).
    """
    return ResNetV2(num_classes, in_channels)


class ResNetV2(nn.Module):
    """Weight-standardised convolutions in 16 pre-activation bottlenecks, group normalisation, GAP and FC."""

    any_channels = False

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", StandardisedConv2d(in_channels, 64, 7, stride=2, padding=3, bias=False))
        # as in BiT: zeros take part in the maximum, unlike the pooling's own padding
        self.stem.add_module("pad", nn.ConstantPad2d(1, 0.0))
        self.stem.add_module("pool", nn.MaxPool2d(3, 2))
        self.stages = nn.Sequential()
        channels = 64
        for number, (blocks, wider) in enumerate(STAGES):
            self.stages.append(Stage(channels, wider, blocks, stride=2 if number else 1))
            channels = wider
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.head = Head(channels, num_classes)
        for module in self.modules():
            if isinstance(module, StandardisedConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(self.norm(self.stages(self.stem(x))).relu())


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose kernels are each standardised to mean 0 and variance 1 (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, h, w]."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * (variance + 1e-8).rsqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Stage(nn.Module):
    """Bottlenecks, of which the first widens and strides: [batch, in_channels, h, w] -> [batch, channels, h', w']."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int):
        super().__init__()
        rest = (Bottleneck(channels, channels) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(
            Bottleneck(in_channels, channels, stride, Shortcut(in_channels, channels, stride)), *rest
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, channels, h, w]."""
        return self.blocks(x)


class Bottleneck(nn.Module):
    """x + conv1x1(conv3x3(conv1x1 x)), a group normalisation and ReLU before each convolution and a given shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        width = channels // 4
        self.downsample = shortcut
        self.norm1 = nn.GroupNorm(NORM_GROUPS, in_channels)
        self.conv1 = StandardisedConv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv2 = StandardisedConv2d(width, width, 3, stride, 1, bias=False)
        self.norm3 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv3 = StandardisedConv2d(width, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, channels, h, w]."""
        active = self.norm1(x).relu()
        shortcut = x if self.downsample is None else self.downsample(active)
        y = self.conv1(active)
        y = self.conv2(self.norm2(y).relu())
        return self.conv3(self.norm3(y).relu()) + shortcut


class Shortcut(nn.Module):
    """A strided convolution 1x1."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv = StandardisedConv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, channels, h, w]."""
        return self.conv(x)


class Head(nn.Module):
    """GAP and a linear layer, held as a convolution 1x1."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.fc = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to logits [batch, num_classes]."""
        return self.fc(x.mean((2, 3), keepdim=True)).flatten(1)
