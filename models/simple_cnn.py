"""The plain CNN of report A."""

from torch import Tensor, nn

from polychrome.models.blocks import norm_relu


class SimpleCNN(nn.Module):
    """Three convolutions and two linear layers (report A, task 1).

    3 x [conv k3 p1 (in_channels -> 32 -> 64 -> 128) + bias, BN, ReLU, maxpool 2], GAP, FC 256, ReLU, dropout .5, FC.
    139,570 parameters with 3 channels and 50 classes. Reported test accuracy, absent channels zero: RGB .3556,
    RG .3111, GB .0378, R .0222, G .0222, B .0200. Height and width: at least 8.

    Left open in the report: the activation between the two linear layers (ReLU). Weights have torch's default
    initialisation.
    """

    any_channels = False

    def __init__(self, num_classes: int = 50, in_channels: int = 3, dropout: float = 0.5):
        super().__init__()
        self.features = nn.Sequential(_block(in_channels, 32), _block(32, 64), _block(64, 128))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(self.pool(self.features(x)))


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(*norm_relu(nn.Conv2d(in_channels, out_channels, 3, padding=1)), nn.MaxPool2d(2))
