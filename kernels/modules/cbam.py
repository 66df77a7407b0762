"""CBAM: the channels' gate from their means and maxima, then the pixels' (Woo et al. 2018)."""

import torch
from torch import Tensor, nn

from polychrome.kernels.channel_gate.reference import linear
from polychrome.kernels.channel_gate.scale import channel_scale
from polychrome.kernels.checks import check_input, sizes
from polychrome.kernels.leaves import leaf
from polychrome.kernels.modules.layers import called, checked_odd, checked_size, wide
from polychrome.kernels.plain import is_centred, is_plain
from polychrome.kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate
from polychrome.kernels.tensors import wide_dtype, without_autocast


class CBAM(nn.Module):
    """Multiply [batch, channels, height, width] by a gate of its channels, then by a map of its pixels.

    With the defaults the module of the authors' attention-module, whose weights load: `ChannelGate.mlp.1` and
    `ChannelGate.mlp.3`, linear layers with `weight` and `bias`; `SpatialGate.spatial.conv.weight` [1, 2, kernel_size,
    kernel_size], whose first map is the maximum; `SpatialGate.spatial.bn` with `batch_norm=True`. No `SpatialGate` with
    `spatial=False`.

    Raises:
        ValueError: a size is below 1, channels is below reduction_ratio, or kernel_size is even or below 3.
    """

    def __init__(
        self,
        channels: int,
        reduction_ratio: int = 16,
        *,
        spatial: bool = True,
        kernel_size: int = 7,
        batch_norm: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        channels = checked_size("channels", channels, least=1)
        ratio = checked_size("reduction_ratio", reduction_ratio, least=1)
        if channels < ratio:
            raise ValueError(f"reduction_ratio must be at most channels={channels}, got {ratio}")
        made = {"device": device, "dtype": dtype}
        self.ChannelGate = _Channels(channels, channels // ratio, **made)
        self.SpatialGate = _Pixels(kernel_size, batch_norm, **made) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width], with at least one pixel."""
        x = self.ChannelGate(x)
        return x if self.SpatialGate is None else self.SpatialGate(x)


class _Channels(nn.Module):
    """The channels' half: a sigmoid of the sum of what two layers make of the means and of the maxima."""

    def __init__(self, channels: int, hidden: int, **made):
        super().__init__()
        first, second = nn.Linear(channels, hidden, **made), nn.Linear(hidden, channels, **made)
        self.mlp = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            pooled = _means_and_maxima(x)
            if isinstance(x, Tensor) and self._is_plain():
                first, second = (self.mlp[place] for place in (1, 3))
                hidden = linear(pooled, first.weight, first.bias).relu()
                logits = linear(hidden, second.weight, second.bias)
            else:
                logits = wide(called(self.mlp, pooled, x))
            return channel_scale(x, _sum_of_halves(logits).sigmoid())

    def _is_plain(self) -> bool:
        kinds = nn.Flatten, nn.Linear, nn.ReLU, nn.Linear
        same = is_plain(self.mlp, nn.Sequential) and len(self.mlp) == len(kinds)
        return same and all(is_plain(layer, kind) for layer, kind in zip(self.mlp, kinds, strict=True))


class _Pixels(nn.Module):
    """The pixels' half: a sigmoid of a convolution of the channels' maximum and mean, perhaps normalised."""

    def __init__(self, kernel_size: int, batch_norm: bool, **made):
        super().__init__()
        size = checked_odd("kernel_size", kernel_size, least=3)
        self.spatial = nn.Module()
        self.spatial.conv = nn.Conv2d(2, 1, size, padding=size // 2, bias=False, **made)
        self.spatial.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01, **made) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.spatial.conv, self.spatial.bn
        if norm is None and isinstance(x, Tensor) and is_centred(conv):
            return spatial_attention(x, conv.weight.flip(1), conv.bias)  # the op's first map is the mean
        with without_autocast(x):
            logits = called(conv, channel_stats(x).flip(1), x)
            return spatial_gate(x, wide(logits if norm is None else called(norm, logits, x)))


@leaf
def _means_and_maxima(x: Tensor) -> Tensor:
    """Return means, then maxima over the pixels, [2 * batch, channels], wide."""
    check_input(x)
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have at least one pixel, got {sizes(x)}")
    dtype = wide_dtype(x.dtype)
    return torch.cat([x.mean((2, 3), dtype=dtype), x.flatten(2).max(2).values.to(dtype)])


@leaf
def _sum_of_halves(logits: Tensor) -> Tensor:
    """Return [batch, channels], the first half of the rows plus the second."""
    return logits.unflatten(0, (2, -1)).sum(0)
