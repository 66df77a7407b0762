"""Dynamic convolution as a layer."""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from polychrome.kernels.checks import check_float, check_shape
from polychrome.kernels.dynamic_conv import dynamic_conv1d, dynamic_conv2d
from polychrome.kernels.dynamic_conv.api import Padding, Pair
from polychrome.kernels.dynamic_conv.borders import check_mode
from polychrome.kernels.dynamic_conv.problem import resolve_ints, resolve_padding
from polychrome.kernels.leaves import leaf
from polychrome.kernels.modules.experts import ExpertAttention
from polychrome.kernels.modules.layers import GEOMETRY, FiveDimensional, checked_sizes, mode_of, wide
from polychrome.kernels.plain import computations, is_plain


class Experts(FiveDimensional):
    """The shape, geometry and kernels of a layer with experts: `weight` [experts, out_channels, in/groups, ...].

    Raises:
        ValueError: a size, the padding or its mode is out of range.
    """

    DIMS: ClassVar[int] = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride,
        padding,
        dilation,
        groups: int,
        padding_mode: str,
        experts: int,
        device=None,
        dtype=None,
    ):
        super().__init__()
        in_channels, out_channels, groups, experts = checked_sizes(in_channels, out_channels, groups, experts)
        steps = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        kernel, stride, dilation = (resolve_ints(*each, self.DIMS) for each in steps.items())
        sides = resolve_padding(padding, kernel, stride, dilation)
        check_mode(padding_mode)
        self.in_channels, self.out_channels, self.groups, self.experts = in_channels, out_channels, groups, experts
        self.kernel_size, self.stride, self.dilation = tuple(kernel), tuple(stride), tuple(dilation)
        self.padding, self.padding_mode = padding if isinstance(padding, str) else _padding(sides), padding_mode
        shape = experts, out_channels, in_channels // groups, *kernel
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    @property
    def geometry(self) -> tuple:
        """Stride, padding, dilation and groups."""
        return self.stride, self.padding, self.dilation, self.groups

    def reset_parameters(self) -> None:
        """Reinitialise all parameters, the attention's too, and reset the temperature."""
        self._reset_experts()
        self.attention.reset_parameters()

    def extra_repr(self) -> str:
        shown = ("kernel_size", *GEOMETRY, *mode_of(self), "experts")
        words = [f"{name}={getattr(self, name)!r}" for name in shown]
        return ", ".join([f"{self.in_channels}, {self.out_channels}", *words])


class _DynamicConv(Experts):
    """A convolution with `experts` kernels, mixed by an attention."""

    CONV: ClassVar[type[nn.Module]]

    def __init__(self, *shape, bias: bool, routing, hidden_channels, temperature, device, dtype):
        made = {"device": device, "dtype": dtype}
        super().__init__(*shape, **made)
        self.bias = nn.Parameter(torch.empty(self.experts, self.out_channels, **made)) if bias else None
        attention = self.in_channels, self.experts, routing, hidden_channels, temperature
        self.attention = ExpertAttention(*attention, **made)
        self._reset_experts()

    @classmethod
    def from_conv(cls, conv: nn.Module, experts: int = 4, **options) -> Self:
        """Return a layer whose experts are all copies of `conv`; `options` go to the constructor.

        With softmax routing it computes the same as `conv`, up to rounding, until training separates the experts.

        Raises:
            ValueError: `conv` does more than a convolution with its weight: it has hooks or parametrisations, such as a
                spectral norm, or its own forward.
        """
        if not is_plain(conv, type(conv)) or computations(type(conv)) != computations(cls.CONV):
            name = cls.CONV.__name__
            raise ValueError(f"conv must be a plain nn.{name}, without hooks or a forward of its own, got {conv}")
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        options = {"experts": experts, "device": conv.weight.device, "dtype": conv.weight.dtype, **options}
        layer = cls(conv.in_channels, conv.out_channels, *geometry, conv.bias is not None, conv.padding_mode, **options)
        with torch.no_grad():
            layer.weight.copy_(conv.weight)
            if conv.bias is not None:
                layer.bias.copy_(conv.bias)
        return layer.train(conv.training)

    def _reset_experts(self) -> None:
        # nn.Conv2d's kaiming_uniform_(a=sqrt(5)) is this bound; given all experts at once it would misread the fan
        bound = 1 / math.sqrt(self.weight[0, 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *["bias=False"] * (self.bias is None)])


class DynamicConv2d(_DynamicConv):
    """`nn.Conv2d` with `experts` kernels, mixed for each sample by attention over its channel means.

    With the defaults, the dynamic convolution of Chen et al. 2020, whose temperature `anneal_temperature` lowers; with
    `routing="sigmoid"`, CondConv (Yang et al. 2019). The arguments of `nn.Conv2d` have the same meaning; padding may
    also be four ints (left, right, top, bottom). `hidden_channels` is the width of the attention's hidden layer, 0 for
    none; left out, it is in_channels // 4 + 1 with softmax and 0 with sigmoid. Each expert starts as an `nn.Conv2d`
    would.

    State dict, in the names of the public Dynamic-convolution-Pytorch:
        `weight` [experts, out_channels, in_channels/groups, kernel_height, kernel_width]; timm's CondConv2d holds it
            as [experts, -1], so `.view(layer.weight.shape)` converts it
        `bias` [experts, out_channels], with `bias=True`
        `attention.fc1.weight` [hidden_channels, in_channels, 1, 1], where there is a hidden layer
        `attention.fc2.weight` [experts, hidden_channels or in_channels, 1, 1], `attention.fc2.bias` [experts]
        `attention.temperature` [], float32; unchanged by `to_empty`, and where a state dict lacks it
        `scale`, `shift` [out_channels], float32, after `polychrome.kernels.fold_batch_norm`

    Raises:
        ValueError: a size, the padding, the routing or the temperature is out of range.
    """

    CONV = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        experts: int = 4,
        routing: str = "softmax",
        hidden_channels: int | None = None,
        temperature: float = 1.0,
        device=None,
        dtype=None,
    ):
        shape = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, experts
        attention = {"routing": routing, "hidden_channels": hidden_channels, "temperature": temperature}
        super().__init__(*shape, bias=bias, **attention, device=device, dtype=dtype)
        self.register_buffer("scale", None)
        self.register_buffer("shift", None)
        self.relu = False

    def forward(self, x: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Return `polychrome.kernels.dynamic_conv2d` of x [batch, in_channels, height, width].

        A given `mixing` [batch, experts], such as one shared by several layers, replaces the attention's.
        """
        mixing = self.attention(x) if mixing is None else mixing
        # a cast of the folded model, such as .half(), may have cast the two to a dtype that the op does not take
        scale, shift = (None if v is None else wide(v) for v in (self.scale, self.shift))
        options = {"padding_mode": self.padding_mode, "scale": scale, "shift": shift, "relu": self.relu}
        return dynamic_conv2d(x, self.weight, mixing, self.bias, *self.geometry, **options)

    def extra_repr(self) -> str:
        folded = ["scale, shift"] * (self.scale is not None) + ["relu"] * self.relu
        return ", ".join([super().extra_repr(), *folded])


class DynamicConv1d(_DynamicConv):
    """`nn.Conv1d` with `experts` kernels, mixed for each sample by attention over its channel means.

    As `DynamicConv2d`, for x [batch, in_channels, length]; padding may also be two ints (left, right). State dict:
    `weight` [experts, out_channels, in_channels/groups, kernel_length], the others as those of `DynamicConv2d`; those
    of the attention may lack their last dimension, as in Dynamic-convolution-Pytorch's layer.

    Raises:
        ValueError: a size, the padding, the routing or the temperature is out of range.
    """

    DIMS, CONV = 1, nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        experts: int = 4,
        routing: str = "softmax",
        hidden_channels: int | None = None,
        temperature: float = 1.0,
        device=None,
        dtype=None,
    ):
        shape = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, experts
        attention = {"routing": routing, "hidden_channels": hidden_channels, "temperature": temperature}
        super().__init__(*shape, bias=bias, **attention, device=device, dtype=dtype)

    def forward(self, x: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Return `polychrome.kernels.dynamic_conv1d` of x [batch, in_channels, length].

        A given `mixing` [batch, experts], such as one shared by several layers, replaces the attention's.
        """
        mixing = self.attention(_image(x, self.in_channels)) if mixing is None else mixing
        return dynamic_conv1d(x, self.weight, mixing, self.bias, *self.geometry, padding_mode=self.padding_mode)


@leaf
def _image(x: Tensor, channels: int) -> Tensor:
    """Return signals [batch, channels, length] as images of one row."""
    check_float("x", x)
    check_shape("x", x, batch=None, channels=channels, length=None)
    return x.unsqueeze(2)


def _padding(sides: list[int]) -> tuple[int, ...]:
    """Return the padding as torch's modules hold it, an int for each axis; where sides differ, as `F.pad` takes it."""
    if sides[::2] == sides[1::2]:
        return tuple(sides[::2])
    return tuple(side for axis in reversed(range(len(sides) // 2)) for side in sides[2 * axis : 2 * axis + 2])
