"""The small baseline CNN of report E."""

from torch import nn

from polychrome.models.blocks import PlainCNN

MAP = 5  # height and width of the map that is flattened, as it comes out of 32x32 images


class BaseNet(PlainCNN):
    """Two convolutions and two linear layers, after LeNet-5 (report E).

    conv k5 (in_channels -> 6) + bias, ReLU, maxpool 2, conv k5 (6 -> 16) + bias, ReLU, maxpool 2, flatten 16x5x5, FC
    200, ReLU, FC. 93,122 parameters with 3 channels and 50 classes. Reported validation accuracy on CIFAR-100 after 15
    epochs: .24-.26. Height and width: at least 16.

    The report has no further details; the accuracy here on CIFAR-100 is not measured yet. For image sizes other
    than 32 an adaptive average pooling to 5x5 stands before the flatten, which changes nothing at 32. Weights have
    torch's default initialisation.
    """

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        features = nn.Sequential(_block(in_channels, 6), _block(6, 16))
        layers = nn.Linear(16 * MAP * MAP, 200), nn.ReLU(), nn.Linear(200, num_classes)
        super().__init__(features, *layers, pooled=MAP)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 5), nn.ReLU(), nn.MaxPool2d(2))
