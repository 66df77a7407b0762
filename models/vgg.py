"""torchvision's VGG-19 and the slimmer network that report E derived from it."""

from itertools import pairwise

from torch import nn
from torchvision import models as torchvision_models

from polychrome.models.blocks import PlainCNN, norm_relu
from polychrome.models.first_conv import for_channels, tell_untrained

WIDTHS = (64, 128, 256, 512)


def vgg19(num_classes: int = 50, in_channels: int = 3, **options) -> nn.Module:
    """Return torchvision's VGG-19 (Simonyan and Zisserman 2015), untrained; `options` go to torchvision.

    139,775,090 parameters with 3 channels and 50 classes, 119,545,856 of them in its two hidden linear layers.
    Reported validation accuracy on CIFAR-100: .49-.51 (report E). Height and width: at least 32; the linear layers see
    a 7x7 map at every size. With another number of channels only the first convolution differs, initialised as
    torchvision does.

    Left open in the report: batch normalisation (none, as in torchvision's `vgg19`; with it the network is `vgg19_bn`).
    """
    model = torchvision_models.vgg19(num_classes=num_classes, **options)
    if in_channels != 3:
        tell_untrained(options)
        model.features[0] = for_channels(model.features[0], in_channels)
        _start(model.features[0])
    model.any_channels = False
    return model


def vgg19_features(in_channels: int = 3) -> nn.Sequential:
    """Return the `features` of torchvision's VGG-19, started as there: [batch, in_channels, h, w] -> 512 channels.

    Height and width, at least 32, become a 32nd, rounded down.
    """
    features = torchvision_models.vgg.make_layers(torchvision_models.vgg.cfgs["E"])
    features[0] = for_channels(features[0], in_channels)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            _start(layer)
    return features


class VGGSlim(PlainCNN):
    """Eight convolutions with batch normalisation and two linear layers (report E).

    2 x [conv k3 p1 (width) + bias, BN, ReLU] for the widths 64, 128, 256 and 512, maxpool 2 between them, GAP, FC
    4096, ReLU, dropout .2, FC. 6,995,314 parameters with 3 channels and 50 classes. Reported on CIFAR-100, images
    resized to 128: validation accuracy .77, .782 on the held-out tenth of the leaderboard. Height and width: at
    least 8.

    Left open in the report: the report counts five blocks and lists these four; the fifth is read as the head, since a
    fifth pair would be listed with its pooling (with one more of width 512 this would be VGG-13's convolutions). The
    adaptive pooling's size (1x1: the first linear layer takes 512 values) and the convolutions' bias (as in VGG).
    Weights have torch's default initialisation.
    """

    def __init__(self, num_classes: int = 50, in_channels: int = 3, dropout: float = 0.2):
        layers = []
        for width, wider in pairwise((in_channels, *WIDTHS)):
            convs = nn.Conv2d(width, wider, 3, padding=1), nn.Conv2d(wider, wider, 3, padding=1)
            layers += [*map(norm_relu, convs), nn.MaxPool2d(2)]
        head = nn.Linear(WIDTHS[-1], 4096), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4096, num_classes)
        super().__init__(nn.Sequential(*layers[:-1]), *head)


def _start(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)
