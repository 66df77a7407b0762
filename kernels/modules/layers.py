"""What the modules share: layers inside them, called or read, and checks of sizes."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.kernels.channel_gate.reference import linear
from polychrome.kernels.checks import as_int, check_float, check_shape
from polychrome.kernels.leaves import leaf
from polychrome.kernels.plain import is_pointwise
from polychrome.kernels.tensors import wide_dtype

PACKAGE = __name__.rpartition(".")[0]
GEOMETRY = ("stride", "padding", "dilation", "groups")


def is_ours(module: nn.Module) -> bool:
    """Return whether a module is of a class of this package, or of a subclass of one."""
    return any(kind.__module__.startswith(f"{PACKAGE}.") for kind in type(module).__mro__)


class FiveDimensional(nn.Module):
    """A module whose weight has five dimensions."""

    def _apply(self, fn, recurse=True):
        # .to(memory_format=torch.channels_last) takes tensors of four dimensions, and the weight has five
        def flattened(tensor):
            return fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2]) if tensor.dim() == 5 else fn(tensor)

        return super()._apply(flattened, recurse)


class Lasting(nn.Module):
    """A module with a buffer, named `LASTING`, that no training makes.

    It keeps its value in new memory; in the first memory it has the value that `_first(device, dtype)` gives.
    """

    LASTING: ClassVar[str]

    def _apply(self, fn, recurse=True):
        # to_empty() leaves new memory, and no reset_parameters() and not every state dict fills such a buffer
        before = getattr(self, self.LASTING)
        super()._apply(fn, recurse)
        after = getattr(self, self.LASTING)
        if after is not before and not after.is_meta:
            after.copy_(self._first(after.device, after.dtype) if before.is_meta else before)
        return self


@leaf
def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or float64 if it is float64."""
    return tensor.to(wide_dtype(tensor.dtype))


@leaf
def means(x: Tensor, channels: int | None = None) -> Tensor:
    """Return the means over the pixels in the wide dtype, [batch, channels, 1, 1]; raise where x is no such batch."""
    check_float("x", x)
    check_shape("x", x, batch=None, channels=channels, height=None, width=None)
    return x.mean((2, 3), keepdim=True, dtype=wide_dtype(x.dtype))


def layered(first: nn.Module | None, second: nn.Module, x: Tensor) -> Tensor:
    """Return the output of the layers, with a ReLU between them, for x's means over its pixels."""
    features = means(x)
    if first is not None:
        features = F.relu(called(first, features, x))
    return called(second, features, x)


def called(layer: nn.Module, features: Tensor, x: Tensor) -> Tensor:
    """Return layer(features), with the features in x's dtype, or in the layer's dtype where no parameter has x's."""
    parameters = layer.parameters() if isinstance(x, Tensor) else ()
    return layer(_cast(features, x, tuple(p.dtype for p in parameters if p.is_floating_point())))


@leaf
def _cast(features: Tensor, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """Return the features in x's dtype where it is among `dtypes` or there are none, else in the first of them."""
    return features.to(x.dtype if x.dtype in dtypes or not dtypes else dtypes[0])


def are_plain(first: nn.Module | None, second: nn.Module, x: Tensor) -> bool:
    """Return whether an op may take the layers' parameters: not in a graph of torch.fx, whose layers may change."""
    return isinstance(x, Tensor) and (first is None or is_pointwise(first)) and is_pointwise(second)


def applied(layer: nn.Module, features: Tensor, x: Tensor) -> Tensor:
    """Return layer(features) of wide features [batch, channels, 1, 1], in the wide dtype for a plain 1x1 convolution.

    Any other layer is called; so is each in a graph of torch.fx.
    """
    if isinstance(x, Tensor) and is_pointwise(layer):
        return linear(features.flatten(1), layer.weight, layer.bias)[:, :, None, None]
    return wide(called(layer, features, x))


def parameters_of(layer: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias; both are None without a layer."""
    return (None, None) if layer is None else (layer.weight, layer.bias)


def mode_of(layer: nn.Module) -> tuple[str, ...]:
    """Return the name of the mode of padding where it is to be shown."""
    return () if layer.padding_mode == "zeros" else ("padding_mode",)


def checked_sizes(in_channels: int, out_channels: int, groups: int, experts: int) -> list[int]:
    """Return the sizes as ints; raise ValueError unless each is one, at least 1, and the groups divide the channels."""
    given = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups, "experts": experts}
    in_channels, out_channels, groups, experts = found = [checked_size(*each, least=1) for each in given.items()]
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups must divide in_channels={in_channels} and out_channels={out_channels}, got {groups}")
    return found


def checked_size(name: str, size: int, least: int) -> int:
    """Return `size` as an int; raise ValueError unless it is one, at least `least`."""
    found = as_int(size)
    if found is None or found < least:
        raise ValueError(f"{name} must be an int, at least {least}, got {size!r}")
    return found


def checked_odd(name: str, size: int, least: int) -> int:
    """Return `size` as an int; raise ValueError unless it is odd, at least `least`."""
    found = checked_size(name, size, least)
    if found % 2 == 0:
        raise ValueError(f"{name} must be odd, got {found}")
    return found
