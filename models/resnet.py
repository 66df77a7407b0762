"""torchvision's residual networks, the baselines of the reports."""

from torch import nn
from torchvision import models as torchvision_models


def resnet34(num_classes: int = 50, in_channels: int = 3, **options) -> nn.Module:
    """Return torchvision's ResNet-34 (He et al. 2016), untrained; `options` go to torchvision.

    21,310,322 parameters with 3 channels and 50 classes. Reported test accuracy from scratch: .5978 in report A
    (task 2), .2667 in B, .5933 in C, .5667 in D. With another number of channels only the first convolution differs,
    initialised as torchvision does.
    """
    model = torchvision_models.resnet34(num_classes=num_classes, **options)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.any_channels = False
    return model
