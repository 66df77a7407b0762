"""torchvision's GoogLeNet, one of report E's networks."""

from torch import nn
from torchvision import models as torchvision_models

from polychrome.models.first_conv import for_channels


def googlenet(num_classes: int = 50, in_channels: int = 3, **options) -> nn.Module:
    """Return torchvision's GoogLeNet (Szegedy et al. 2015), untrained; `options` go to torchvision.

    5,651,154 parameters with 3 channels and 50 classes. Report E trained it on CIFAR-100 and gives no accuracy. Height
    and width: at least 15. With another number of channels only the first convolution differs, initialised as
    torchvision does.

    Left open in the report: the two auxiliary heads of the paper. Both are left out, so that training and evaluation
    give the same kind of output; torchvision's `transform_input`, made for its pretrained weights, stays off.
    """
    model = torchvision_models.googlenet(num_classes=num_classes, aux_logits=False, init_weights=True, **options)
    if in_channels != 3:
        model.conv1.conv = for_channels(model.conv1.conv, in_channels)
        nn.init.trunc_normal_(model.conv1.conv.weight, std=0.01, a=-2, b=2)
    model.any_channels = False
    return model
