"""The two CNNs of report D whose first convolution is generated for each sample, for any number of channels."""

import torch
from torch import Tensor, nn

from polychrome.models.generated_conv import AveragedConv2d, kernels_of_channels, present, without_absent

WIDTH = 32
KERNEL = (WIDTH, 3, 3)
FREQUENCIES = 5


class DynamicCNNv1(nn.Module):
    """One convolution whose kernel an MLP makes from the number of channels (report D, task 1).

    Generated conv k3 p1 (any channels -> 32), BN, ReLU, GAP, FC. 31,570 parameters with 50 classes, whatever
    `in_channels` is; the report prints 31.57 K. Reported test accuracy .2422, trained with random channel drop .1244.
    Height and width: at least 1.

    Left open in the report: the MLP. Here it makes the kernel of one channel, [32, 3, 3], from that channel's position
    and the number of channels, which works for any number: 20 -> 96 without bias, ReLU, 96 -> 288; the parameter count
    requires these widths. From the number alone all channels would get one kernel and colour would be lost. Number and
    position are given as sines and cosines, which stay bounded. No bias, since BN follows, and the channels' responses
    are averaged, so that the statistics of BN fit any number of them.
    """

    any_channels = True

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(4 * FREQUENCIES, 96, bias=False), nn.ReLU(), nn.Linear(96, 9 * WIDTH), nn.Unflatten(-1, KERNEL)
        )
        self.conv = AveragedConv2d(padding=1)
        self.features = nn.Sequential(nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [batch, any channels, height, width] to logits [batch, num_classes].

        With `mask`, [batch, channels] bool, each sample's result depends on its present channels alone; a sample
        without present channels counts as one channel of zeros.

        Raises:
            TypeError: the mask is not bool.
            ValueError: the mask is not [batch, channels].
        """
        x, mask = without_absent(x, mask)
        places = torch.cat([_waves(present(mask)).expand(-1, mask.shape[1], -1), _waves(mask.cumsum(1) - 1)], 2)
        kernels = self.generator(places.to(self.generator[0].weight.dtype))
        return self.head(self.features(self.conv(x, kernels, mask)))


class DynamicCNNv2(nn.Module):
    """Two convolutions, the first with a kernel that a small CNN makes from the input (report D, task 1).

    Generated conv k3 p1 (any channels -> 32), BN, ReLU, conv k3 p1 (32 -> 64) + bias, BN, ReLU, GAP, FC 128, ReLU, FC.
    63,314 parameters with 50 classes, whatever `in_channels` is; the report prints 63.31 K. Reported test accuracy
    .1422, trained with random channel drop .2244. Height and width: at least 1.

    Left open in the report: the small CNN. Here it is shared by the channels and makes the kernel of one channel, [32,
    3, 3], from that channel's image, which works for any number of channels: conv k5 s2 p2 (1 -> 8), ReLU, conv k3 s2
    p1 (8 -> 128), ReLU, GAP, FC 48, ReLU, FC 288; the parameter count requires about these widths. The order of the
    channels has no effect. No bias in the generated convolution, since BN follows, and the channels' responses are
    averaged, so that the statistics of BN fit any number of them.
    """

    any_channels = True

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__()
        self.generator = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, 48),
            nn.ReLU(),
            nn.Linear(48, 9 * WIDTH),
            nn.Unflatten(-1, KERNEL),
        )
        self.conv = AveragedConv2d(padding=1)
        self.features = nn.Sequential(
            nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, num_classes)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [batch, any channels, height, width] to logits [batch, num_classes].

        With `mask`, [batch, channels] bool, each sample's result depends on its present channels alone; a sample
        without present channels counts as one channel of zeros.

        Raises:
            TypeError: the mask is not bool.
            ValueError: the mask is not [batch, channels].
        """
        x, mask = without_absent(x, mask)
        kernels = kernels_of_channels(self.generator, x)
        return self.head(self.features(self.conv(x, kernels, mask)))


def _waves(numbers: Tensor) -> Tensor:
    """Return sines and cosines of [batch, channels] numbers at periods from 2 pi up, [batch, channels, 10] float32."""
    powers = torch.arange(FREQUENCIES, device=numbers.device) / FREQUENCIES
    angles = numbers.unsqueeze(2) * 100.0**-powers
    return torch.cat([angles.sin(), angles.cos()], 2)
