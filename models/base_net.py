"""The small baseline CNN of report E."""

from torch import Tensor, nn

MAP = 5  # height and width of the map that is flattened, as it comes out of 32x32 images


class BaseNet(nn.Module):
    """Two convolutions and two linear layers, after LeNet-5 (report E).

    conv k5 (in_channels -> 6) + bias, ReLU, maxpool 2, conv k5 (6 -> 16) + bias, ReLU, maxpool 2, flatten 16x5x5, FC
    200, ReLU, FC. 93,122 parameters with 3 channels and 50 classes. Reported validation accuracy on CIFAR-100 after 15
    epochs: .24-.26. Height and width: at least 16.

    The report describes it no further; this one's accuracy on CIFAR-100 is not measured yet. For image sizes other
    than 32 an adaptive average pooling to 5x5 stands before the flatten, which changes nothing at 32. Weights start as
    torch's layers do.
    """

    any_channels = False

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__()
        self.features = nn.Sequential(_block(in_channels, 6), _block(6, 16))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(MAP),
            nn.Flatten(),
            nn.Linear(16 * MAP * MAP, 200),
            nn.ReLU(),
            nn.Linear(200, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(self.features(x))


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 5), nn.ReLU(), nn.MaxPool2d(2))
