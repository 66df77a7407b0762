"""VGG-19 and ResNet-18 side by side under one head, two of report E's attempts."""

import torch
from torch import Tensor, nn

from polychrome.models.resnet import resnet18
from polychrome.models.vgg import vgg19_features

WIDTH = 512


class VGGResNet(nn.Module):
    """The convolutions of both networks on the same images, each averaged over its pixels to 512 values."""

    any_channels = False

    def __init__(self, in_channels: int):
        super().__init__()
        self.vgg = nn.Sequential(vgg19_features(in_channels), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.resnet = resnet18(in_channels=in_channels)
        self.resnet.fc = nn.Identity()


class VGGResNetSum(VGGResNet):
    """VGG-19 and ResNet-18, whose features are added before one linear layer (report E).

    31,226,546 parameters with 3 channels and 50 classes. Report E tried it on CIFAR-100 and gives no details;
    .68-.71 validation accuracy is its range for this network, the concatenated one and `resnetv2`, all augmentations
    at once. Height and width: at least 32.

    Left open in the report: where the features are taken (after the last convolutions, averaged over the pixels: 512
    values of each network, none negative), the weight of each (1) and the head (one linear layer). Weights have
    torchvision's initialisation, the head torch's default.
    """

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__(in_channels)
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(self.vgg(x) + self.resnet(x))


class VGGResNetConcat(VGGResNet):
    """`vgg_resnet_sum` with the features side by side, VGG-19's first, before one linear layer (report E).

    31,252,146 parameters with 3 channels and 50 classes. For the report's figures and open details see `VGGResNetSum`.
    Height and width: at least 32.
    """

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__(in_channels)
        self.head = nn.Linear(2 * WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(torch.cat([self.vgg(x), self.resnet(x)], 1))
