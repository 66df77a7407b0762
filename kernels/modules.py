"""The ops as modules, each a drop-in for the layers it replaces."""

from torch import Tensor, nn

from kernels.channel_gate import channel_gate
from kernels.dynamic_conv import per_sample_conv2d
from kernels.dynamic_conv.api import Pair
from kernels.spatial_attention import channel_stats, spatial_attention


class ChannelStats(nn.Module):
    """Mean and max over the present channels, [batch, channels, h, w] -> [batch, 2, h, w]. No parameters."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `kernels.channel_stats`."""
        return channel_stats(x, mask)


class SpatialAttention(nn.Module):
    """Multiply [batch, channels, h, w] by a map made from its channel mean and max, CBAM's spatial half.

    State dict: `conv.weight` [1, 2, kernel_size, kernel_size], and `conv.bias` [1] with `bias=True`, as in CBAM. The
    `conv` holds the parameters and is not called itself.
    """

    def __init__(self, kernel_size: int = 7, bias: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """See `kernels.spatial_attention`."""
        return spatial_attention(x, self.conv.weight, self.conv.bias)


class ChannelGate(nn.Module):
    """Squeeze-excitation: multiply each channel by a gate made from all channel means.

    State dict as torchvision's `SqueezeExcitation` and timm's `SEModule`: `fc1.weight` [hidden, channels, 1, 1],
    `fc1.bias` [hidden], `fc2.weight` [channels, hidden, 1, 1], `fc2.bias` [channels]; no `fc1` where
    `hidden_channels` is None (then hidden is channels), no biases with `bias=False`. The two hold the parameters and
    are not called themselves.
    """

    def __init__(self, channels: int, hidden_channels: int | None = None, bias: bool = True, gate: str = "sigmoid"):
        super().__init__()
        self.gate = gate
        self.fc1 = None if hidden_channels is None else nn.Conv2d(channels, hidden_channels, 1, bias=bias)
        self.fc2 = nn.Conv2d(hidden_channels or channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """See `kernels.channel_gate`."""
        w1, b1 = (None, None) if self.fc1 is None else (self.fc1.weight, self.fc1.bias)
        return channel_gate(x, w1, b1, self.fc2.weight, self.fc2.bias, self.gate)

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}"


class PerSampleConv2d(nn.Module):
    """Convolve each sample with the kernel given for it. No parameters: another network makes the kernels."""

    def __init__(self, stride: Pair = 1, padding: Pair | str = 0, dilation: Pair = 1, groups: int = 1):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `kernels.per_sample_conv2d`."""
        return per_sample_conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}"
