"""torchvision's residual networks, the baselines of the reports."""

from torch import nn
from torchvision import models as torchvision_models

from polychrome.models.first_conv import for_channels


def resnet18(num_classes: int = 50, in_channels: int = 3, **options) -> nn.Module:
    """Return torchvision's ResNet-18 (He et al. 2016), untrained; `options` go to torchvision.

    11,202,162 parameters with 3 channels and 50 classes. Report E trained it on CIFAR-100 and gives no accuracy. Any
    height and width. With another number of channels only the first convolution differs, initialised as torchvision
    does.
    """
    return _resnet(torchvision_models.resnet18, num_classes, in_channels, options)


def resnet34(num_classes: int = 50, in_channels: int = 3, **options) -> nn.Module:
    """Return torchvision's ResNet-34 (He et al. 2016), untrained; `options` go to torchvision.

    21,310,322 parameters with 3 channels and 50 classes. Reported test accuracy from scratch: .5978 in report A
    (task 2), .2667 in B, .5933 in C, .5667 in D. Any height and width. With another number of channels only the first
    convolution differs, initialised as torchvision does.
    """
    return _resnet(torchvision_models.resnet34, num_classes, in_channels, options)


def resnet50(num_classes: int = 50, in_channels: int = 3, **options) -> nn.Module:
    """Return torchvision's ResNet-50 (He et al. 2016), untrained; `options` go to torchvision.

    23,610,482 parameters with 3 channels and 50 classes. Report E started from pretrained weights on a small
    fine-grained set: test accuracy .3834 with the backbone frozen (training .6373), .6413 with the whole network
    trained on (training .9937). Any height and width. With another number of channels only the first convolution
    differs, initialised as torchvision does.
    """
    return _resnet(torchvision_models.resnet50, num_classes, in_channels, options)


def _resnet(make, num_classes: int, in_channels: int, options: dict) -> nn.Module:
    model = make(num_classes=num_classes, **options)
    if in_channels != 3:
        model.conv1 = for_channels(model.conv1, in_channels)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.any_channels = False
    return model
