"""Networks that were made for a fixed number of channels, and take any of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polychrome.kernels.checks import check_float
from polychrome.kernels.tensors import in_layout, without_autocast
from polychrome.models.any_channel_conv import SHARPNESS
from polychrome.models.generated_conv import without_absent


class AnyChannels(nn.Module):
    """A network that was made for a fixed number of channels, such as a trained one of timm's, and takes any of them.

    An absent channel is filled in with the nearest present one: the mean of the present channels, weighted by a softmax
    of -4 * distance^2, the distance in channels, so that of two as near it is their mean. A lone channel thus acts as a
    gray image, where zeros in place of the others would make an image of one colour. Present channels stay as they are:
    where all are there, the network is called with the image itself. There are no parameters beside the network's.

        model = AnyChannels(timm.create_model("resnet50", pretrained=True))
        model(x)  # [batch, 3, height, width], as before
        model(x, mask)  # mask [batch, 3] bool: the samples' present channels
        model(x[:, :2], channels=[0, 1])  # red and green alone

    `network` is the network that was given. As a channel stands for another, they should be standardised, or of one
    scale, and in an order in which neighbours are alike, such as by wavelength.

    Args:
        network: maps [batch, in_channels, height, width] to anything.
        in_channels: the channels that it takes; by default those of its first `nn.Conv2d`.

    Raises:
        ValueError: the network takes any channels already, or has no `nn.Conv2d` and `in_channels` is not given.
    """

    any_channels = fixed_places = True

    def __init__(self, network: nn.Module, in_channels: int | None = None):
        super().__init__()
        if getattr(network, "any_channels", False):
            raise ValueError(f"{type(network).__name__} takes any channels already")
        if in_channels is None:
            first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
            if first is None:
                raise ValueError(f"in_channels must be given: {type(network).__name__} has no nn.Conv2d to tell it")
            in_channels = first.in_channels
        self.network, self.in_channels = network, in_channels
        self.train(network.training)

    def forward(self, x: Tensor, mask: Tensor | None = None, channels: Sequence[int] | None = None):
        """Return what the network returns for images x [batch, channels, height, width].

        Args:
            mask: [batch, channels] bool, which channels are present, by default all; what x holds of absent channels
                does not matter. A sample without any counts as channels of zeros.
            channels: the position of each of x's channels among the network's `in_channels`, each once; by default x
                has all in their order.

        Raises:
            TypeError: the mask is not bool, or x, with mask or channels, is not float32, float64, float16 or bfloat16.
            ValueError: mask or channels do not fit x, or x has another number of channels than `in_channels` and
                `channels` is not given.
        """
        count = x.shape[1]
        if channels is None and count != self.in_channels:
            raise ValueError(
                f"a network for {self.in_channels} channels needs the positions of x's {count}: give `channels`, such "
                "as [0] for the first alone"
            )
        if mask is None and channels is None:
            return self.network(x)
        check_float("x", x)
        present, mask = without_absent(x, mask)
        if channels is not None:
            sources = self._sources([int(each) for each in channels], count)
            both = (present, mask)
            present, mask = (torch.cat([each, torch.zeros_like(each[:, :1])], 1)[:, sources] for each in both)
        return self.network(in_layout(x, _filled(present, mask)))

    def _sources(self, channels: list[int], count: int) -> list[int]:
        """Return for each of the network's channels its number in x, `count` where x has it not."""
        wanted = range(self.in_channels)
        if len(channels) != count or len({*channels}) != count or not {*channels} <= {*wanted}:
            raise ValueError(
                f"channels must be {count} different positions among 0 to {self.in_channels - 1}, got {channels}"
            )
        return [channels.index(each) if each in channels else count for each in wanted]


def _filled(x: Tensor, mask: Tensor) -> Tensor:
    """Return x [batch, channels, height, width], zero where the mask is false, with absent channels filled in."""
    with without_autocast(x):
        place = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
        closeness = -SHARPNESS * (place[:, None] - place).square()
        closeness = closeness.masked_fill(~mask[:, None], torch.finfo(closeness.dtype).min)
        nearest = (closeness.softmax(2).to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])
        return torch.where(mask[:, :, None, None], x, nearest)
