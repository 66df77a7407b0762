"""Modules that multiply their input by a gate of its channels or of its pixels."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.kernels.channel_gate import channel_gate
from polychrome.kernels.channel_gate.api import check_gate
from polychrome.kernels.channel_gate.reference import gate_of_logits
from polychrome.kernels.channel_gate.scale import channel_scale
from polychrome.kernels.leaves import leaf
from polychrome.kernels.modules.layers import (
    are_plain,
    called,
    checked_odd,
    checked_size,
    layered,
    means,
    parameters_of,
    wide,
)
from polychrome.kernels.plain import is_along_channels, is_centred
from polychrome.kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate
from polychrome.kernels.tensors import without_autocast


class ChannelStats(nn.Module):
    """Mean and max over the present channels, [batch, channels, h, w] -> [batch, 2, h, w]. No parameters."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `polychrome.kernels.channel_stats`."""
        return channel_stats(x, mask)


class SpatialGate(nn.Module):
    """Multiply [batch, channels, h, w] by the sigmoid of logits [batch, 1, h, w]. No parameters."""

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """See `polychrome.kernels.spatial_gate`."""
        return spatial_gate(x, logits)


class SpatialAttention(nn.Module):
    """Multiply [batch, channels, h, w] by a map made from its channel mean and max, CBAM's spatial half.

    State dict: `conv.weight` [1, 2, kernel_size, kernel_size], whose first map is the mean, and `conv.bias` [1] with
    `bias=True`. The authors' CBAM has the maximum first: of its `conv.weight`, take `weight.flip(1)`.

    Raises:
        ValueError: `kernel_size` is even or below 3.
    """

    def __init__(self, kernel_size: int = 7, bias: bool = False, *, device=None, dtype=None):
        super().__init__()
        kernel_size = checked_odd("kernel_size", kernel_size, least=3)
        padding = kernel_size // 2
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """See `polychrome.kernels.spatial_attention`."""
        if isinstance(x, Tensor) and is_centred(self.conv):
            return spatial_attention(x, self.conv.weight, self.conv.bias)
        with without_autocast(x):
            return spatial_gate(x, wide(called(self.conv, channel_stats(x), x)))


class ChannelGate(nn.Module):
    """Squeeze-excitation: multiply each channel by a gate made from all channel means.

    State dict as torchvision's `SqueezeExcitation` and timm's `SEModule`: `fc1.weight` [hidden, channels, 1, 1],
    `fc1.bias` [hidden], `fc2.weight` [channels, hidden, 1, 1], `fc2.bias` [channels]; no `fc1` where
    `hidden_channels` is None (then hidden is channels), no biases with `bias=False`. Of theirs with other activations
    than ReLU and `gate`, as in EfficientNet and MobileNetV3, the weights load and the layers differ.

    Raises:
        ValueError: a size is below 1, or `gate` is neither `sigmoid` nor `softmax`.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        *,
        device=None,
        dtype=None,
    ):
        super().__init__()
        channels = checked_size("channels", channels, least=1)
        if hidden_channels is not None:
            hidden_channels = checked_size("hidden_channels", hidden_channels, least=1)
        check_gate(gate)
        self.gate = gate
        made = {"bias": bias, "device": device, "dtype": dtype}
        self.fc1 = None if hidden_channels is None else nn.Conv2d(channels, hidden_channels, 1, **made)
        self.fc2 = nn.Conv2d(hidden_channels or channels, channels, 1, **made)

    def forward(self, x: Tensor) -> Tensor:
        """See `polychrome.kernels.channel_gate`."""
        if are_plain(self.fc1, self.fc2, x):
            return channel_gate(x, *parameters_of(self.fc1), *parameters_of(self.fc2), self.gate)
        with without_autocast(x):
            return channel_scale(x, _gate(layered(self.fc1, self.fc2, x), self.gate))

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}"


class ECA(nn.Module):
    """Efficient channel attention: multiply each channel by a gate made from the means of its neighbours (Wang 2020).

    State dict as the public ECANet's `eca_layer` and timm's `EcaModule`: `conv.weight` [1, 1, kernel_size]. Left out,
    kernel_size is the paper's: the odd size at or next above `log2(channels) / 2 + 1 / 2`, cut to a whole number.

    Raises:
        ValueError: channels is below 1, or kernel_size is even or below 1.
    """

    def __init__(self, channels: int, kernel_size: int | None = None, *, device=None, dtype=None):
        super().__init__()
        channels = checked_size("channels", channels, least=1)
        size = int((math.log2(channels) + 1) / 2) | 1 if kernel_size is None else kernel_size
        size = checked_odd("kernel_size", size, least=1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width], of any number of channels."""
        with without_autocast(x):
            features = means(x).flatten(1).unsqueeze(1)
            conv = self.conv
            if isinstance(x, Tensor) and is_along_channels(conv):
                logits = F.conv1d(features, conv.weight.to(features.dtype), padding=conv.padding)
            else:
                logits = called(conv, features, x)
            return channel_scale(x, _gate(logits.squeeze(1), "sigmoid"))


@leaf
def _gate(logits: Tensor, gate: str) -> Tensor:
    """Return the gate of logits [batch, channels, 1, 1], [batch, channels]."""
    return gate_of_logits(wide(logits.flatten(1)), gate)
