"""The ops as modules, each a drop-in for the layers it replaces.

Layers inside the modules (`conv`, `fc1`, `fc2`) are not called as long as they are plain convolutions: the op takes
their parameters. Layers with hooks, and replaced layers, are called between other ops; a graph of torch.fx always calls
them, as they may be replaced later.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.kernels.channel_gate import channel_gate
from polychrome.kernels.channel_gate.api import check_gate
from polychrome.kernels.channel_gate.reference import gate_of_logits, linear
from polychrome.kernels.checks import as_int, check_float, check_shape
from polychrome.kernels.dynamic_conv import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.dynamic_conv.api import Padding, Pair
from polychrome.kernels.dynamic_conv.borders import check_mode
from polychrome.kernels.dynamic_conv.problem import Geometry, resolve_geometry, resolve_pair
from polychrome.kernels.fuse.channel_scale import channel_scale
from polychrome.kernels.leaves import leaf
from polychrome.kernels.plain import is_centred, is_plain, is_pointwise
from polychrome.kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate
from polychrome.kernels.tensors import wide_dtype

ROUTINGS = ("softmax", "sigmoid")
_GEOMETRY = ("stride", "padding", "dilation", "groups")


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

    State dict: `conv.weight` [1, 2, kernel_size, kernel_size], and `conv.bias` [1] with `bias=True`, as in CBAM.

    Raises:
        ValueError: `kernel_size` is even or below 3.
    """

    def __init__(self, kernel_size: int = 7, bias: bool = False):
        super().__init__()
        kernel_size = _checked_size("kernel_size", kernel_size, least=3)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """See `polychrome.kernels.spatial_attention`."""
        if isinstance(x, Tensor) and is_centred(self.conv):
            return spatial_attention(x, self.conv.weight, self.conv.bias)
        with _without_autocast(x):
            return spatial_gate(x, _wide(_called(self.conv, channel_stats(x), x)))


class ChannelGate(nn.Module):
    """Squeeze-excitation: multiply each channel by a gate made from all channel means.

    State dict as torchvision's `SqueezeExcitation` and timm's `SEModule`: `fc1.weight` [hidden, channels, 1, 1],
    `fc1.bias` [hidden], `fc2.weight` [channels, hidden, 1, 1], `fc2.bias` [channels]; no `fc1` where
    `hidden_channels` is None (then hidden is channels), no biases with `bias=False`.

    Raises:
        ValueError: a size is below 1, or `gate` is neither `sigmoid` nor `softmax`.
    """

    def __init__(self, channels: int, hidden_channels: int | None = None, bias: bool = True, gate: str = "sigmoid"):
        super().__init__()
        channels = _checked_size("channels", channels, least=1)
        if hidden_channels is not None:
            hidden_channels = _checked_size("hidden_channels", hidden_channels, least=1)
        check_gate(gate)
        self.gate = gate
        self.fc1 = None if hidden_channels is None else nn.Conv2d(channels, hidden_channels, 1, bias=bias)
        self.fc2 = nn.Conv2d(hidden_channels or channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """See `polychrome.kernels.channel_gate`."""
        if _are_plain(self.fc1, self.fc2, x):
            return channel_gate(x, *_parameters(self.fc1), *_parameters(self.fc2), self.gate)
        with _without_autocast(x):
            return channel_scale(x, _gate(_layered(self.fc1, self.fc2, x), self.gate))

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}"


class PerSampleConv2d(nn.Module):
    """Convolve each sample of [batch, in_channels, height, width] with the kernel given for it. No parameters.

    Raises:
        ValueError: stride, padding, dilation or groups is out of range.
    """

    def __init__(
        self,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ):
        super().__init__()
        resolve_geometry((1, 1), stride, padding, dilation, groups)
        check_mode(padding_mode)
        self.stride, self.padding, self.dilation, self.padding_mode = stride, padding, dilation, padding_mode
        self.groups = _checked_size("groups", groups, least=1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `polychrome.kernels.per_sample_conv2d`."""
        geometry = self.stride, self.padding, self.dilation, self.groups
        return per_sample_conv2d(x, weight, bias, *geometry, padding_mode=self.padding_mode)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in _GEOMETRY + _mode_of(self))


class DynamicConv2d(nn.Module):
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
        `attention.temperature` [], float32; unchanged where a state dict lacks it
        `scale`, `shift` [out_channels], float32, after `polychrome.kernels.fold_batch_norm`

    Raises:
        ValueError: a size, the padding, the routing or the temperature is out of range.
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
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups, "experts": experts}
        in_channels, out_channels, groups, experts = (_checked_size(*each, least=1) for each in sizes.items())
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels={in_channels} and out_channels={out_channels}, got {groups}"
            )
        kernel = resolve_pair("kernel_size", kernel_size)
        geometry = resolve_geometry(kernel, stride, padding, dilation, groups)
        check_mode(padding_mode)
        self.in_channels, self.out_channels, self.groups, self.experts = in_channels, out_channels, groups, experts
        self.kernel_size, self.stride, self.dilation = map(tuple, (kernel, geometry.stride, geometry.dilation))
        self.padding, self.padding_mode = _padding(padding, geometry), padding_mode
        made = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(experts, out_channels, in_channels // groups, *kernel, **made))
        self.bias = nn.Parameter(torch.empty(experts, out_channels, **made)) if bias else None
        self.attention = ExpertAttention(in_channels, experts, routing, hidden_channels, temperature, **made)
        self.register_buffer("scale", None)
        self.register_buffer("shift", None)
        self.relu = False
        self._reset_experts()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, experts: int = 4, **options) -> "DynamicConv2d":
        """Return a layer whose experts are all copies of `conv`; `options` go to the constructor.

        With softmax routing it computes the same as `conv`, up to rounding, until training separates the experts.

        Raises:
            ValueError: `conv` does more than a convolution with its weight: it has hooks or parametrisations, such as a
                spectral norm, or its own forward.
        """
        own = (getattr(type(conv), name, None) for name in ("forward", "_conv_forward"))
        if not is_plain(conv, type(conv)) or tuple(own) != (nn.Conv2d.forward, nn.Conv2d._conv_forward):
            raise ValueError(f"conv must be a plain nn.Conv2d, without hooks or a forward of its own, got {conv}")
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        options = {"experts": experts, "device": conv.weight.device, "dtype": conv.weight.dtype, **options}
        layer = cls(conv.in_channels, conv.out_channels, *geometry, conv.bias is not None, conv.padding_mode, **options)
        with torch.no_grad():
            layer.weight.copy_(conv.weight)
            if conv.bias is not None:
                layer.bias.copy_(conv.bias)
        return layer.train(conv.training)

    def reset_parameters(self) -> None:
        """Reinitialise all parameters, the attention's too, and reset the temperature."""
        self._reset_experts()
        self.attention.reset_parameters()

    def _reset_experts(self) -> None:
        # nn.Conv2d's kaiming_uniform_(a=sqrt(5)) is this bound; given all experts at once it would misread the fan
        bound = 1 / math.sqrt(self.weight[0, 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Return `polychrome.kernels.dynamic_conv2d` of x [batch, in_channels, height, width].

        A given `mixing` [batch, experts], such as one shared by several layers, replaces the attention's.
        """
        mixing = self.attention(x) if mixing is None else mixing
        geometry = self.stride, self.padding, self.dilation, self.groups
        # a cast of the folded model, such as .half(), may have cast the two to a dtype that the op does not take
        scale, shift = (None if v is None else _wide(v) for v in (self.scale, self.shift))
        options = {"padding_mode": self.padding_mode, "scale": scale, "shift": shift, "relu": self.relu}
        return dynamic_conv2d(x, self.weight, mixing, self.bias, *geometry, **options)

    def _apply(self, fn, recurse=True):
        # .to(memory_format=torch.channels_last) takes tensors of four dimensions, and the weight has five
        def flattened(tensor):
            return fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2]) if tensor.dim() == 5 else fn(tensor)

        return super()._apply(flattened, recurse)

    def extra_repr(self) -> str:
        shown = ("kernel_size", *_GEOMETRY, *_mode_of(self), "experts")
        words = [f"{name}={getattr(self, name)!r}" for name in shown]
        words += ["bias=False"] * (self.bias is None) + ["scale, shift"] * (self.scale is not None)
        return ", ".join([f"{self.in_channels}, {self.out_channels}", *words, *["relu"] * self.relu])


class ExpertAttention(nn.Module):
    """The mixing weights of a `DynamicConv2d`: [batch, channels, height, width] -> [batch, experts].

    softmax or sigmoid of `fc2(relu(fc1(mean over pixels))) / temperature`. Everything is computed in float32 (float64
    for float64), under autocast too. State dict and arguments: see `DynamicConv2d`.

    Raises:
        ValueError: a size, the routing or the temperature is out of range.
    """

    # Buffers set by a schedule, not by training: a moving average of a model's weights has to copy them.
    SCHEDULED = ("temperature",)

    def __init__(
        self,
        channels: int,
        experts: int,
        routing: str = "softmax",
        hidden_channels: int | None = None,
        temperature: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if routing not in ROUTINGS:
            raise ValueError(f"routing must be {' or '.join(map(repr, ROUTINGS))}, got {routing!r}")
        if hidden_channels is None:
            hidden_channels = channels // 4 + 1 if routing == "softmax" else 0
        hidden_channels = _checked_size("hidden_channels", hidden_channels, least=0)
        _check_temperature("temperature", temperature)
        self.routing, self.first_temperature = routing, float(temperature)
        made = {"device": device, "dtype": dtype}
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1, bias=False, **made) if hidden_channels else None
        self.fc2 = nn.Conv2d(hidden_channels or channels, experts, 1, **made)
        self.register_buffer("temperature", torch.tensor(self.first_temperature, dtype=torch.float32, device=device))

    def reset_parameters(self) -> None:
        """Reinitialise the parameters and reset the temperature to the constructor's."""
        for layer in self.children():
            layer.reset_parameters()
        self.temperature.fill_(self.first_temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixing weights in float32 (float64 for float64); softmax's sum to one."""
        if _are_plain(self.fc1, self.fc2, x):
            layers = (*_parameters(self.fc1), *_parameters(self.fc2))
            return _mixing(x, *layers, self.temperature, self.routing)
        with _without_autocast(x):
            return _routed(_layered(self.fc1, self.fc2, x), self.temperature, self.routing)

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        state_dict.setdefault(prefix + "temperature", self.temperature)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"routing={self.routing!r}"


def anneal_temperature(
    model: nn.Module, epoch: float, epochs: float = 10, start: float = 30.0, end: float = 1.0
) -> float:
    """Set the temperature of every `DynamicConv2d` in `model` for `epoch`, which counts from 0, and return it.

    It falls linearly from `start` at epoch 0 to `end` at `epochs` and stays there (Chen et al. 2020: 30 to 1 in ten
    epochs). Fractions of an epoch anneal per step. The buffers change in place: a compiled model is not recompiled, and
    CUDA graphs see the new value.

    Raises:
        ValueError: `epoch` is negative, or `epochs`, `start` or `end` is not positive.
    """
    if not (epoch >= 0 and epochs > 0):
        raise ValueError(f"epoch must be at least 0 and epochs above 0, got epoch={epoch!r}, epochs={epochs!r}")
    _check_temperature("start", start)
    _check_temperature("end", end)
    temperature = start + (end - start) * min(epoch / epochs, 1)
    for module in model.modules():
        if isinstance(module, ExpertAttention):
            module.temperature.fill_(temperature)
    return temperature


def _mixing(x: Tensor, w1, b1, w2, b2, temperature: Tensor, routing: str) -> Tensor:
    """Return the mixing weights of an `ExpertAttention` with plain layers, [batch, experts]; w1 may be None."""
    check_float("x", x)
    channels = (w2 if w1 is None else w1).shape[1]
    check_shape("x", x, batch=None, channels=channels, height=None, width=None)
    with _without_autocast(x):
        features = x.mean((2, 3), dtype=wide_dtype(x.dtype))
        if w1 is not None:
            features = linear(features, w1, b1).relu()
        return _routed(linear(features, w2, b2), temperature, routing)


@leaf
def _routed(logits: Tensor, temperature: Tensor, routing: str) -> Tensor:
    """Return the mixing weights of logits [batch, experts] or [batch, experts, 1, 1]."""
    logits = _wide(logits.flatten(1)) / temperature
    return logits.softmax(1) if routing == "softmax" else logits.sigmoid()


@leaf
def _gate(logits: Tensor, gate: str) -> Tensor:
    """Return the gate of logits [batch, channels, 1, 1], [batch, channels]."""
    return gate_of_logits(_wide(logits.flatten(1)), gate)


@leaf
def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or float64 if it is float64."""
    return tensor.to(wide_dtype(tensor.dtype))


@leaf
def _means(x: Tensor) -> Tensor:
    """Return the means over the pixels in the wide dtype, [batch, channels, 1, 1]."""
    check_float("x", x)
    check_shape("x", x, batch=None, channels=None, height=None, width=None)
    return x.mean((2, 3), keepdim=True, dtype=wide_dtype(x.dtype))


def _layered(first: nn.Module | None, second: nn.Module, x: Tensor) -> Tensor:
    """Return the output of the layers, with a ReLU between them, for x's means over its pixels."""
    features = _means(x)
    if first is not None:
        features = F.relu(_called(first, features, x))
    return _called(second, features, x)


def _called(layer: nn.Module, features: Tensor, x: Tensor) -> Tensor:
    """Return layer(features), with the features in x's dtype, or in the layer's dtype where no parameter has x's."""
    parameters = layer.parameters() if isinstance(x, Tensor) else ()
    return layer(_cast(features, x, tuple(p.dtype for p in parameters if p.is_floating_point())))


@leaf
def _cast(features: Tensor, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """Return the features in x's dtype where it is among `dtypes` or there are none, else in the first of them."""
    return features.to(x.dtype if x.dtype in dtypes or not dtypes else dtypes[0])


def _are_plain(first: nn.Module | None, second: nn.Module, x: Tensor) -> bool:
    """Return whether an op may take the layers' parameters: not in a graph of torch.fx, whose layers may change."""
    return isinstance(x, Tensor) and (first is None or is_pointwise(first)) and is_pointwise(second)


def _parameters(layer: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias; both are None without a layer."""
    return (None, None) if layer is None else (layer.weight, layer.bias)


def _without_autocast(x: Tensor):
    """Return a context in which autocast is off; the meta device and torch.fx's proxies have no autocast."""
    if not isinstance(x, Tensor) or x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _padding(padding: Padding, geometry: Geometry) -> str | tuple[int, ...]:
    """Return the padding as `nn.Conv2d` holds it: a word, or a pair; four ints where sides differ."""
    if isinstance(padding, str):
        return padding
    top, bottom, left, right = geometry.padding
    return (top, left) if (top, left) == (bottom, right) else (left, right, top, bottom)


def _mode_of(layer: nn.Module) -> tuple[str, ...]:
    """Return the name of the mode of padding where it is to be shown."""
    return () if layer.padding_mode == "zeros" else ("padding_mode",)


def _checked_size(name: str, size: int, least: int) -> int:
    """Return `size` as an int; raise ValueError unless it is one, at least `least`."""
    found = as_int(size)
    if found is None or found < least:
        raise ValueError(f"{name} must be an int, at least {least}, got {size!r}")
    return found


def _check_temperature(name: str, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name} must be a positive number, got {temperature!r}")
