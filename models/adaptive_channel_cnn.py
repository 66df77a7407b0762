"""The CNN of report C whose modules expand any number of channels to a fixed width."""

import torch
from torch import Tensor, nn

from polychrome.kernels import channel_stats
from polychrome.kernels.modules import DynamicConv2d, anneal_temperature
from polychrome.models.blocks import norm_relu

WIDTHS = (32, 64, 128, 256, 512)
SMALLEST = 64  # six poolings by 2
TEMPERATURE = 34.0


class AdaptiveChannelCNN(nn.Module):
    """Five adaptive-channel modules of dynamic convolutions and three linear layers (report C, task 1).

    5 x [`AdaptiveChannels` (32, 64, 128, 256, 512), BN, ReLU, maxpool 2], flatten 512x2x2, FC 1024, ReLU, dropout .5,
    FC 512, ReLU, dropout .5, FC; the fifth module pools inside too. 15,353,260 parameters with 50 classes, whatever
    `in_channels` is. Reported test accuracy on the channels alone: RGB .4533, RG .3978, GB .4156, RB .4200, R .3689,
    G .3711, B .3756. Height and width: at least 64. The order of the channels matters.

    The report's temperature starts at 34 and falls by 3 to 1: call `start_epoch` before each epoch of training. Its
    attention has int(0.25 * channels) + 1 hidden channels, `DynamicConv2d`'s own choice (its exception for 3 channels
    never arises: a convolution here has 2 or at least 32). With 2 channels that is one hidden channel; where its ReLU
    is off, the mixing is the same for all samples and only its bias is trained.

    Left open in the report: image sizes other than 128 (an average pooling to 2x2 before the flatten, which changes
    nothing at 128), the half that is rounded down where an odd number of maps is missing (the mean's), and the channels
    of wider inputs that are kept (the first 32). Weights start with the layers' own initialisation.

    Raises:
        ValueError: in `forward`, height or width is below 64, or, on the CPU, a sample has no present channel.
    """

    any_channels = True

    def __init__(self, num_classes: int = 50, in_channels: int = 3, dropout: float = 0.5):
        super().__init__()
        self.features = nn.ModuleList(AdaptiveChannels(width, pool=width == WIDTHS[-1]) for width in WIDTHS)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            *(nn.Linear(4 * WIDTHS[-1], 1024), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(512, num_classes),
        )

    def start_epoch(self, epoch: int) -> None:
        """Set the temperature for `epoch`, which counts from 1: 34 in the first, 3 less in each, 1 from the twelfth on.

        Raises:
            ValueError: `epoch` is below 1.
        """
        if epoch < 1:
            raise ValueError(f"epochs count from 1, got {epoch}")
        anneal_temperature(self, epoch - 1, epochs=11, start=TEMPERATURE)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [batch, any channels, height, width] to logits [batch, num_classes].

        With `mask`, [batch, channels] bool, each sample's result depends on its present channels alone (in evaluation;
        in training, batch normalisation takes its statistics over the whole batch).
        """
        height, width = x.shape[-2:]
        if height < SMALLEST or width < SMALLEST:
            raise ValueError(f"images must be at least {SMALLEST}x{SMALLEST}, got {height}x{width}")
        for module in self.features:
            x = self.pool(module(x, mask))
            mask = None  # a module's output has all its channels
        return self.head(x)


class AdaptiveChannels(nn.Module):
    """Fill any number of channels up to `width` and convolve: [batch, any, h, w] -> [batch, width, h, w].

    The mean and the max over the channels go through a dynamic conv k3 p1 2 -> width/2, BN, ReLU. The input, then that
    result, then copies of the mean map (half of the missing channels) and the max map (the rest) of input and result
    make `width` channels; excess channels are cut, and with `width` input channels or more only input channels are
    left. A dynamic conv k3 p1 width -> width, BN and ReLU follow. With `pool`, input and result are max-pooled by 2
    before they are joined.

    The steps depend on the channel count, so `polychrome.kernels.fold_batch_norm` takes `summary` and `conv`
    alone.
    """

    def __init__(self, width: int, pool: bool = False):
        super().__init__()
        self.width = width
        self.summary = _block(2, width // 2)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv = _block(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """With `mask`, [batch, channels] bool, each sample's input is its present channels alone."""
        if mask is None and self.training and x.shape[1] >= self.width:
            # several processes wait for a gradient of each parameter: `summary` gets zeros, as with a mask
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.conv(self._filled(x) if mask is None else self._filled_from_present(x, mask))

    def _filled(self, x: Tensor) -> Tensor:
        if x.shape[1] >= self.width:
            return self.pool(x[:, : self.width])
        joined = torch.cat([self.pool(x), self.pool(self.summary(channel_stats(x)))], 1)
        missing = self.width - joined.shape[1]
        if missing <= 0:
            return joined[:, : self.width]
        mean, largest = channel_stats(joined).split(1, 1)
        means = missing // 2
        return torch.cat([joined, mean.expand(-1, means, -1, -1), largest.expand(-1, missing - means, -1, -1)], 1)

    def _filled_from_present(self, x: Tensor, mask: Tensor) -> Tensor:
        summary = self.summary(channel_stats(x, mask))
        joined = torch.cat([self.pool(x), self.pool(summary)], 1)
        all_present = mask.new_ones(mask.shape[0], summary.shape[1])
        maps = torch.cat([joined, channel_stats(joined, torch.cat([mask, all_present], 1))], 1)
        samples = torch.arange(mask.shape[0], device=mask.device)
        return maps[samples[:, None], _sources(mask, self.width)]


def _sources(mask: Tensor, width: int) -> Tensor:
    """Return which map fills each channel, [batch, width] int64.

    The maps are the channels that mask [batch, channels] speaks of, width/2 of the summary, the mean and the max.
    """
    channels = mask.shape[1]
    present = mask.sum(1, keepdim=True)
    place = torch.arange(width, device=mask.device).expand(mask.shape[0], -1)
    # the present channels first, in their order
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    own = order.gather(1, place.clamp(max=channels - 1))
    filled = present + width // 2
    means = (width - filled).clamp(min=0) // 2
    mean = channels + width // 2
    copies = torch.where(place < filled + means, mean, mean + 1)
    rest = torch.where(place < filled, channels + place - present, copies)
    return torch.where(place < present, own, rest)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return norm_relu(DynamicConv2d(in_channels, out_channels, 3, padding=1, experts=4, temperature=TEMPERATURE))
