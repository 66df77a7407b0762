"""The four-layer CNN of separable convolutions and channel gates of report C."""

from itertools import pairwise

from torch import nn

from polychrome.kernels.modules import ChannelGate
from polychrome.models.fixed_size_cnn import FixedSizeCNN

WIDTHS = (32, 64, 128, 256)


class AttentionSeparableCNN(FixedSizeCNN):
    """Four separable convolutions, each with a channel gate, for one image size (report C, task 2).

    4 x [depthwise conv k3 p1 + bias, conv 1x1 + bias (in_channels -> 32 -> 64 -> 128 -> 256), channel gate (GAP, 1x1
    without bias, sigmoid), maxpool 2, dropout .2], flatten 256x14x14, dropout .3, FC. 2,641,744 parameters with 3
    channels, 50 classes and 224x224 images. Reported test accuracy .2178 (the report's resnet34: .5933). Height and
    width: exactly `image_size`, which is at least 16; the flatten takes 256 x (image_size // 16)^2 values.

    Left open in the report: image sizes other than 224 (an odd height or width is rounded down by the pooling),
    activation and normalisation (none: the report names none, and BN would change the count), whether each block has
    pooling and the first dropout (it has both: the flatten needs four poolings) and the unit of the dropouts (single
    values). Weights have torch's default initialisation.

    Raises:
        ValueError: `image_size` is below 16 or is not a whole number; in `forward`, an image has another size.
    """

    def __init__(
        self,
        num_classes: int = 50,
        in_channels: int = 3,
        dropout: float = 0.2,
        head_dropout: float = 0.3,
        image_size: int = 224,
    ):
        blocks = (_block(width, wider, dropout) for width, wider in pairwise((in_channels, *WIDTHS)))
        super().__init__(image_size, blocks, WIDTHS[-1])
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(head_dropout), nn.Linear(self.flat, num_classes))


def _block(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
        ChannelGate(out_channels, bias=False),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
    )
