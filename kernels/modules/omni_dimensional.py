"""Omni-dimensional dynamic convolution as a layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.kernels.dynamic_conv.api import Padding, Pair
from polychrome.kernels.dynamic_conv.problem import resolve_pair
from polychrome.kernels.modules.dynamic import Experts
from polychrome.kernels.modules.experts import Tempered
from polychrome.kernels.modules.layers import applied, called, checked_size, checked_sizes, means
from polychrome.kernels.omni_dimensional import Attentions, omni_dimensional_conv2d
from polychrome.kernels.tensors import without_autocast


class ODConv2d(Experts):
    """`nn.Conv2d` with `experts` kernels that four attentions weigh: by expert, tap, input and output channel.

    The omni-dimensional dynamic convolution of Li et al. 2022, without a bias. The arguments of `nn.Conv2d` have the
    same meaning; padding may also be four ints (left, right, top, bottom). The attentions share a hidden layer of
    in_channels * reduction channels, at least `min_channels`. `anneal_temperature` sets the temperature.

    State dict, in the names of the authors' ODConv, whose weights load:
        `weight` [experts, out_channels, in_channels/groups, kernel_height, kernel_width]
        `attention.fc.weight` [hidden, in_channels, 1, 1], `attention.bn`, an `nn.BatchNorm2d` of hidden channels
        `attention.channel_fc`, `filter_fc`, `spatial_fc`, `kernel_fc`: `weight` [features, hidden, 1, 1] and `bias`; of
            in_channels, out_channels, kernel_height * kernel_width and `experts` features. There is no `filter_fc` in a
            depthwise layer, no `spatial_fc` with a 1x1 kernel, and no `kernel_fc` with one expert
        `attention.temperature` [], float32; unchanged by `to_empty`, and where a state dict lacks it

    Raises:
        ValueError: a size, the padding, the reduction or the temperature is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        experts: int = 4,
        reduction: float = 0.0625,
        min_channels: int = 16,
        temperature: float = 1.0,
        device=None,
        dtype=None,
    ):
        made = {"device": device, "dtype": dtype}
        geometry = stride, padding, dilation, groups, padding_mode
        super().__init__(in_channels, out_channels, kernel_size, *geometry, experts, **made)
        attention = self.in_channels, self.out_channels, self.kernel_size, self.groups, self.experts
        self.attention = OmniDimensionalAttention(*attention, reduction, min_channels, temperature, **made)
        self._reset_experts()

    def _reset_experts(self) -> None:
        for expert in self.weight:
            nn.init.kaiming_normal_(expert, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in_channels, height, width] -> [batch, out_channels, out_height, out_width], in x's dtype."""
        attentions = self.attention(x)
        return omni_dimensional_conv2d(x, self.weight, *attentions, *self.geometry, padding_mode=self.padding_mode)


class OmniDimensionalAttention(Tempered):
    """The four attentions of an `ODConv2d`: [batch, in_channels, height, width] -> `Attentions`, in float32.

    Arguments and state dict: see `ODConv2d`. A normalisation of a batch of one in training is an error, as elsewhere.

    Raises:
        ValueError: a size, the reduction or the temperature is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        groups: int = 1,
        experts: int = 4,
        reduction: float = 0.0625,
        min_channels: int = 16,
        temperature: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__(temperature, device)
        if not 0 < reduction <= 1:
            raise ValueError(f"reduction must be above 0 and at most 1, got {reduction!r}")
        in_channels, out_channels, groups, experts = checked_sizes(in_channels, out_channels, groups, experts)
        height, width = resolve_pair("kernel_size", kernel_size)
        hidden = max(int(in_channels * reduction), checked_size("min_channels", min_channels, least=1))
        self.in_channels = in_channels
        made = {"device": device, "dtype": dtype}
        self.fc = nn.Conv2d(in_channels, hidden, 1, bias=False, **made)
        self.bn = nn.BatchNorm2d(hidden, **made)

        def head(features: int, is_there: bool = True) -> nn.Conv2d | None:
            return nn.Conv2d(hidden, features, 1, **made) if is_there else None

        self.channel_fc = head(in_channels)
        self.filter_fc = head(out_channels, not groups == in_channels == out_channels)
        self.spatial_fc = head(height * width, height * width > 1)
        self.kernel_fc = head(experts, experts > 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the parameters and reset the temperature to the constructor's."""
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            else:
                layer.reset_parameters()
        self.temperature.fill_(self.first_temperature)

    def forward(self, x: Tensor) -> Attentions:
        """Return the attentions in float32 (float64 for float64), under autocast too."""
        with without_autocast(x):
            hidden = F.relu(called(self.bn, applied(self.fc, means(x, self.in_channels), x), x))
            channel, filter, spatial, kernel = (
                None if head is None else applied(head, hidden, x).flatten(1) / self.temperature
                for head in (self.channel_fc, self.filter_fc, self.spatial_fc, self.kernel_fc)
            )
            return Attentions(
                channel.sigmoid(),
                None if filter is None else filter.sigmoid(),
                None if spatial is None else spatial.sigmoid(),
                None if kernel is None else kernel.softmax(1),
            )
