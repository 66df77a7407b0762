"""The residual-in-residual dense networks of report B, plain and with a recurrent convolution."""

import torch
from torch import Tensor, nn

WIDTH = 48
GROWTH = 8
RECURRENT_WIDTH = 80
STEPS = 3
SCALE = 0.2
SLOPE = 0.2


class RRDB(nn.Module):
    """Residual-in-residual dense blocks as a classifier (report B).

    Conv k3 s2 p1 (in_channels -> 24), BN, leaky ReLU, conv k3 s2 p1 (24 -> 48), BN, leaky ReLU, `ResidualInResidual`
    (48, growth 8), BN, leaky ReLU, GAP, FC. 169,466 parameters with 3 channels and 50 classes; the report prints
    0.17 M. Reported test accuracy .3511, macro precision .4425, F1 .3435. Height and width: at least 1.

    Left open in the report: everything except the form of the blocks, which is ESRGAN's (Wang et al. 2018): three dense
    blocks of five convolutions, residual sums scaled by 0.2, leaky ReLU of slope 0.2, no BN inside. The small scale,
    rather than BN, keeps the sums stable: the blocks start near the identity. BN stands before and after them, where
    the maps have the scale of the images and of the sums. The parameter count allows one block with 48 channels, or
    more blocks with fewer channels; 48 channels give the head more features for 50 classes. Weights are initialised
    after He et al. 2015; ESRGAN's smaller initial weights are for 23 blocks in a row.
    """

    any_channels = False

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__()
        self.shallow = _shallow(in_channels)
        self.blocks = ResidualInResidual(WIDTH, GROWTH)
        self.head = _head(num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        return self.head(self.blocks(self.shallow(x)))


class RRDBRNN(nn.Module):
    """`RRDB` with a recurrent convolution that refines the shallow feature map (report B).

    As `RRDB`, but before the blocks the map x, [batch, 48, height/4, width/4], becomes x + refine(recurrent(x)), with
    `RecurrentConv2d` (48 -> 80, 3 steps) and conv k3 p1 (80 -> 48) + bias. 296,874 parameters with 3 channels and 50
    classes, and 0.420 G multiply-adds at 128x128; the report prints 0.30 M and 0.42 G, without an image size. Reported
    test accuracy .4267, macro precision .4673, F1 .4133. Height and width: at least 1.

    Left open in the report, beyond the details of `RRDB`: the recurrent convolution. Here it follows Liang & Hu 2015,
    with their 3 steps and BN for their local response normalisation; its 80 channels follow from the two counts.
    """

    any_channels = False

    def __init__(self, num_classes: int = 50, in_channels: int = 3):
        super().__init__()
        self.shallow = _shallow(in_channels)
        self.recurrent = RecurrentConv2d(WIDTH, RECURRENT_WIDTH, STEPS)
        self.refine = nn.Conv2d(RECURRENT_WIDTH, WIDTH, 3, padding=1)
        self.blocks = ResidualInResidual(WIDTH, GROWTH)
        self.head = _head(num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to logits [batch, num_classes]."""
        x = self.shallow(x)
        return self.head(self.blocks(x + self.refine(self.recurrent(x))))


class ResidualInResidual(nn.Module):
    """Three `DenseBlock`s in a row and a residual sum around them: [batch, channels, h, w] -> the same shape."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x + 0.2 * blocks(x)`."""
        return x + SCALE * self.blocks(x)


class DenseBlock(nn.Module):
    """Five convolutions k3 p1, each on all maps before it, and a residual sum: [batch, channels, h, w] -> the same.

    Four make `growth` maps each, through a leaky ReLU; the fifth makes `channels` and has none.
    """

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels + i * growth, growth, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)
        self.relu = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x + 0.2 * the fifth convolution's maps`."""
        maps = x
        for conv in self.convs:
            maps = torch.cat([maps, self.relu(conv(maps))], 1)
        return x + SCALE * self.last(maps)


class RecurrentConv2d(nn.Module):
    """A convolution applied `steps` times to its own output (Liang & Hu 2015): [batch, in, h, w] -> [batch, out, h, w].

    The state is `relu(norm(conv_in(x)))` first, then `relu(norm(conv_in(x) + conv_rec(state)))`, `steps` times. Both
    convolutions are k3 p1 without bias; the steps share them, while each has a BN of its own, as the first state is not
    a sum and the statistics differ.
    """

    def __init__(self, in_channels: int, out_channels: int, steps: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv_rec = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(steps + 1))
        self.relu = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last state."""
        given = self.conv_in(x)
        first, *others = self.norms
        state = self.relu(first(given))
        for norm in others:
            state = self.relu(norm(given + self.conv_rec(state)))
        return state


def _shallow(in_channels: int) -> nn.Sequential:
    """Return the layers from the image to the shallow map, [batch, 48, height/4, width/4], rounded up."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, WIDTH // 2, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDTH // 2)),
        nn.LeakyReLU(SLOPE),
        *(nn.Conv2d(WIDTH // 2, WIDTH, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDTH)),
        nn.LeakyReLU(SLOPE),
    )


def _head(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.BatchNorm2d(WIDTH), nn.LeakyReLU(SLOPE)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes)),
    )


def _initialise(model: nn.Module) -> None:
    """Draw the convolutions' weights after He et al. 2015 for this leaky ReLU, their biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
