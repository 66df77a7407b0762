"""The four-layer CNN of separable convolutions and channel gates of report C."""

from itertools import pairwise

from torch import Tensor, nn

from kernels.modules import ChannelGate
from models.naive_cnn import POOLED, check_image_size, check_images

WIDTHS = (32, 64, 128, 256)


class AttentionSeparableCNN(nn.Module):
    """Four separable convolutions, each with a channel gate, for one image size (report C, task 2).

    4 x [depthwise conv k3 p1 + bias, conv 1x1 + bias (in_channels -> 32 -> 64 -> 128 -> 256), channel gate (GAP, 1x1
    without bias, sigmoid), maxpool 2, dropout .2], flatten 256x14x14, dropout .3, FC. 2,641,744 parameters with 3
    channels, 50 classes and 224x224 images. Reported test accuracy .2178 (resnet34 there: .5933). Height and width:
    exactly `image_size`, which is at least 16; the flatten takes 256 x (image_size // 16)^2 values.

    Left open there: image sizes other than 224 (an odd height or width is rounded down by the pooling), activation
    and normalisation (none: the report names none, and BN would change the count), whether pooling and the first
    dropout stand in each block (both do: the flatten asks for four poolings) and what the dropouts drop (single
    values). Weights start as torch's layers do.

    Raises:
        ValueError: `image_size` is below 16 or no whole number; in `forward`, an image has another size.
    """

    any_channels = False

    def __init__(
        self,
        num_classes: int = 50,
        in_channels: int = 3,
        dropout: float = 0.2,
        head_dropout: float = 0.3,
        image_size: int = 224,
    ):
        super().__init__()
        check_image_size(image_size)
        self.image_size = image_size
        blocks = [_block(width, wider, dropout) for width, wider in pairwise((in_channels, *WIDTHS))]
        self.features = nn.Sequential(*blocks)
        flat = WIDTHS[-1] * (image_size // POOLED) ** 2
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(head_dropout), nn.Linear(flat, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, image_size, image_size] to logits [batch, num_classes]."""
        check_images(x, self.image_size)
        return self.head(self.features(x))


def _block(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
        ChannelGate(out_channels, bias=False),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
    )
