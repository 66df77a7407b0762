"""The four-layer residual CNN with spatial attention of report A."""

from itertools import pairwise

from torch import Tensor, nn

from polychrome.kernels.modules import SpatialAttention
from polychrome.models.blocks import norm_relu

WIDTHS = (32, 64, 128, 256)


class AttentionCNN(nn.Module):
    """Four residual blocks, spatial attention and a linear head (report A, task 2).

    Blocks in_channels -> 32 -> 64 -> 128 -> 256, maxpool 2 after each; spatial attention (k7, no bias), dropout .5,
    GAP, FC. 446,868 parameters with 3 channels and 50 classes. Reported test accuracy .5911 (the report's resnet34:
    .5978). Height and width: at least 16.

    Left open in the report: the place of the sum's ReLU (after the sum, as in ResNet, besides the ReLU in the branch)
    and the unit of the dropout (single values of the attended map). Weights have torch's default initialisation.
    """

    any_channels = False

    def __init__(self, num_classes: int = 50, in_channels: int = 3, dropout: float = 0.5):
        super().__init__()
        widths = (in_channels, *WIDTHS)
        blocks = [ResidualBlock(width, wider) for width, wider in pairwise(widths)]
        self.features = nn.Sequential(*(layer for block in blocks for layer in (block, nn.MaxPool2d(2))))
        self.attention = SpatialAttention(7)
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(self.attention(self.features(x)))


class ResidualBlock(nn.Module):
    """relu(relu(BN(conv k3 x)) + BN(conv 1x1 x)), both convolutions with bias."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.branch = norm_relu(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, height, width]."""
        return self.relu(self.branch(x) + self.shortcut(x))
