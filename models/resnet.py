"""torchvision's residual networks, the baselines of the reports.

Their stem, a 7x7 convolution of stride 2 and a maxpool of stride 2, is made for images of 224 px. `small_stem` replaces
it by a 3x3 convolution of stride 2 without a maxpool: later maps are twice as high and wide, at 3.6 times the
multiply-adds of images of 84 px. Where `weights` ask for trained weights, a first convolution that is not torchvision's
has none of them, and a warning says so; of other models with the option too.
"""

from torch import nn
from torchvision import models as torchvision_models

from polychrome.models.first_conv import for_channels, tell_untrained


def resnet18(num_classes: int = 50, in_channels: int = 3, *, small_stem: bool = False, **options) -> nn.Module:
    """Return torchvision's ResNet-18 (He et al. 2016), untrained; `options` go to torchvision.

    11,202,162 parameters with 3 channels and 50 classes. Report E trained it on CIFAR-100 and gives no accuracy. Any
    height and width. With another number of channels only the first convolution differs, initialised as torchvision
    does.
    """
    return _resnet(torchvision_models.resnet18, num_classes, in_channels, small_stem, options)


def resnet34(num_classes: int = 50, in_channels: int = 3, *, small_stem: bool = False, **options) -> nn.Module:
    """Return torchvision's ResNet-34 (He et al. 2016), untrained; `options` go to torchvision.

    21,310,322 parameters with 3 channels and 50 classes. Reported test accuracy from scratch: .5978 in report A
    (task 2), .2667 in B, .5933 in C, .5667 in D. Any height and width. With another number of channels only the first
    convolution differs, initialised as torchvision does.
    """
    return _resnet(torchvision_models.resnet34, num_classes, in_channels, small_stem, options)


def resnet50(num_classes: int = 50, in_channels: int = 3, *, small_stem: bool = False, **options) -> nn.Module:
    """Return torchvision's ResNet-50 (He et al. 2016), untrained; `options` go to torchvision.

    23,610,482 parameters with 3 channels and 50 classes. Report E started from pretrained weights on a small
    fine-grained set: test accuracy .3834 with the backbone frozen (training .6373), .6413 with the whole network
    trained on (training .9937). Any height and width. With another number of channels only the first convolution
    differs, initialised as torchvision does.
    """
    return _resnet(torchvision_models.resnet50, num_classes, in_channels, small_stem, options)


def _resnet(make, num_classes: int, in_channels: int, small_stem: bool, options: dict) -> nn.Module:
    model = make(num_classes=num_classes, **options)
    if small_stem:
        model.conv1 = nn.Conv2d(in_channels, model.conv1.out_channels, 3, stride=2, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif in_channels != 3:
        model.conv1 = for_channels(model.conv1, in_channels)
    if small_stem or in_channels != 3:
        tell_untrained(options)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.any_channels = False
    return model
