"""Checks that the public convolutions share, forward and transposed, of one to three dimensions."""

from torch import Tensor

from polychrome.kernels.checks import (
    as_int,
    check_device,
    check_same_dtype,
    check_shape,
    check_small_dtype,
    sizes,
)


def check_kernels(name: str, kernels: Tensor, x: Tensor, groups, transposed: bool = False) -> int:
    """Return groups as an int; raise where groups or the kernels do not fit x [batch, channels, ...].

    `name` is "weight", of kernels for each sample, or "experts". Their channels are [out, in/groups], where transposed
    [in, out/groups].
    """
    check_same_dtype(name, kernels, x)
    check_device(name, kernels, x)
    channels, given = x.shape[1], groups
    groups = as_int(given)
    if groups is None or groups < 1 or channels % groups:
        raise ValueError(f"groups must be a positive divisor of in_channels={int(channels)}, got {given!r}")
    wanted = {"experts": None} if name == "experts" else {"batch": x.shape[0]}
    if transposed:
        wanted |= {"in_channels": channels, "out_channels/groups": None}
    else:
        wanted |= {"out_channels": None, "in_channels/groups": channels // groups}
    check_shape(name, kernels, **wanted, **{f"kernel_{axis}": None for axis in axes_of(x)})
    if 0 in kernels.shape[1:] or (name == "experts" and kernels.shape[0] == 0):
        raise ValueError(f"{name} must have no dimension of size 0, got {sizes(kernels)}")
    if not transposed and kernels.shape[1] % groups:
        raise ValueError(f"out_channels must be a multiple of groups={groups}, got {int(kernels.shape[1])}")
    return groups


def axes_of(x: Tensor) -> tuple[str, ...]:
    """Return the names of the dimensions of x [batch, channels, ...] that a kernel goes over."""
    return ("depth", "height", "width")[5 - x.dim() :] if x.dim() > 3 else ("length",)


def check_mixing(mixing: Tensor, x: Tensor, experts: Tensor) -> None:
    """Raise TypeError or ValueError unless mixing is [batch, experts], float32 or of x's dtype."""
    check_small_dtype("mixing", mixing, x)
    check_device("mixing", mixing, x)
    check_shape("mixing", mixing, batch=x.shape[0], experts=experts.shape[0])


def check_bias(bias: Tensor | None, x: Tensor, **wanted: int) -> None:
    """Raise TypeError or ValueError unless bias is None, or of the shape wanted and x's dtype."""
    if bias is not None:
        check_same_dtype("bias", bias, x)
        check_device("bias", bias, x)
        check_shape("bias", bias, **wanted)
