"""The DenseNet-121 of report B whose first convolution is generated for each sample, for any number of channels."""

import math

from torch import Tensor, nn
from torchvision.models import densenet121

from polychrome.models.generated_conv import AveragedConv2d, kernels_of_channels, without_absent

KERNEL = (64, 7, 7)
SMALLEST = 29  # a map of 1x1 is left after the last of five halvings
FEATURES = 64


class DWGDenseNet121(nn.Module):
    """DenseNet-121 whose first kernels a small network makes from the input (report B).

    Generated conv k7 s2 p3 (any channels -> 64), then torchvision's DenseNet-121 (Huang et al. 2017) from its first BN
    on. 7,223,602 parameters with 50 classes, whatever `in_channels` is: 6,995,698 in the DenseNet, 227,904 in the
    network that makes the kernels; the report prints no count. Reported test accuracy .6578 (macro precision .6979,
    recall .6578, F1 .6547), with channel shuffling in training and test .7600 (.7661, .7600, .7520). Height and width:
    at least 29, as in torchvision's.

    Left open in the report: the small network. As in `DynamicCNNv2` it is shared by the channels and makes the kernel
    of one channel, [64, 7, 7], from that channel's image, which works for any number of channels: conv k7 s4 p3 (1 ->
    16), ReLU, conv k3 s2 p1 (16 -> 32), ReLU, conv k3 s2 p1 (32 -> 64), ReLU, GAP, layer normalisation, FC 3,136. The
    strides keep it cheap: 1.4% of the multiply-adds at 84x84 with 3 channels. It has no BN, so a sample's kernels
    depend on that sample alone, in training too; the layer normalisation keeps their scale whatever the contrast. The
    order of the channels has no effect.

    The channels' responses are averaged. Colour channels are alike, so their average has the same scale for any number
    of channels, as the statistics of the following BN need; n independent channels give 1/sqrt(n) of the scale. Kernels
    start with variance 1/49, half of it from the last layer's bias, which all samples share: on standardised noise in
    equal channels the response has standard deviation 1.

    Raises:
        TypeError: in `forward`, the mask is not bool.
        ValueError: in `forward`, height or width is below 29, or the mask is not [batch, channels].
    """

    any_channels = True

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__()
        self.generator = _generator()
        self.conv = AveragedConv2d(stride=2, padding=3)
        self.densenet = densenet121(num_classes=num_classes)
        del self.densenet.features.conv0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [batch, any channels, height, width] to logits [batch, num_classes].

        With `mask`, [batch, channels] bool, each sample's result depends on its present channels alone (in evaluation;
        in training, batch normalisation takes its statistics over the whole batch). A sample without present channels
        counts as one channel of zeros.
        """
        height, width = x.shape[-2:]
        if height < SMALLEST or width < SMALLEST:
            raise ValueError(f"images must be at least {SMALLEST}x{SMALLEST}, got {height}x{width}")
        x, mask = without_absent(x, mask)
        return self.densenet(self.conv(x, kernels_of_channels(self.generator, x), mask))


def _generator() -> nn.Sequential:
    """Return the network from one channel, [n, 1, height, width], to its kernel, [n, 64, 7, 7]."""
    last = nn.Linear(FEATURES, math.prod(KERNEL))
    generator = nn.Sequential(
        *(nn.Conv2d(1, 16, 7, stride=4, padding=3), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, FEATURES, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(FEATURES)),
        *(last, nn.Unflatten(-1, KERNEL)),
    )
    for layer in generator:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    # the features have unit variance, so half of a kernel's variance comes from them, half from the bias
    variance = 1 / math.prod(KERNEL[1:])
    nn.init.normal_(last.weight, std=math.sqrt(variance / 2 / FEATURES))
    nn.init.normal_(last.bias, std=math.sqrt(variance / 2))
    return generator
