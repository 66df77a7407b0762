"""Blocks that several networks share."""

from torch import Tensor, nn


def norm_relu(conv: nn.Module) -> nn.Sequential:
    """Return a convolution followed by batch normalisation and ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


class PlainCNN(nn.Module):
    """Convolutions `features`, average pooling to a square of `pooled` pixels a side, then the layers `head`."""

    any_channels = False

    def __init__(self, features: nn.Sequential, *head: nn.Module, pooled: int = 1):
        super().__init__()
        self.features = features
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(pooled), nn.Flatten(), *head)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(self.features(x))
