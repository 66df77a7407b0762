"""The plain CNN of report C, one network per channel combination."""

from itertools import pairwise

from torch import nn

from polychrome.models.blocks import norm_relu
from polychrome.models.fixed_size_cnn import FixedSizeCNN

WIDTHS = (16, 32, 64, 128)


class NaiveCNN(FixedSizeCNN):
    """Four convolutions and three linear layers, for one image size (report C, task 1).

    4 x [conv k3 p1 (in_channels -> 16 -> 32 -> 64 -> 128) + bias, BN, ReLU, maxpool 2, dropout .2], flatten 128x8x8,
    FC 1024, ReLU, FC 512, ReLU, FC. 9,037,714 parameters with 1 channel, 50 classes and 128x128 images. Reported test
    accuracy, one network trained per combination: RGB .4000, RG .3467, GB .3667, RB .4200, R .3822, G .3511, B .3533.
    Height and width: exactly `image_size`, which is at least 16; the flatten takes 128 x (image_size // 16)^2 values.

    `one_per_combination` says that the report trains a separate network for each channel combination, with as many
    input channels, instead of one network with zeros for absent channels; the training code must follow it.

    Left open in the report: image sizes other than 128 (an odd height or width is rounded down by the pooling), the
    unit of the dropout (single values) and the layers between the linear layers (ReLU, no dropout). Weights have
    torch's default initialisation.

    Raises:
        ValueError: `image_size` is below 16 or is not a whole number; in `forward`, an image has another size.
    """

    one_per_combination = True

    def __init__(self, num_classes: int = 50, in_channels: int = 3, dropout: float = 0.2, image_size: int = 128):
        blocks = (_block(width, wider, dropout) for width, wider in pairwise((in_channels, *WIDTHS)))
        super().__init__(image_size, blocks, WIDTHS[-1])
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.flat, 1024),
            nn.ReLU(),
            nn.Linear(1024, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )


def _block(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(*norm_relu(conv), nn.MaxPool2d(2), nn.Dropout(dropout))
