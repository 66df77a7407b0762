"""Omni-dimensional dynamic convolution: experts mixed and scaled along each of their dimensions (Li et al. 2022)."""

from typing import NamedTuple

from torch import Tensor

from polychrome.kernels.channel_gate.scale import channel_scale
from polychrome.kernels.dynamic_conv import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.leaves import leaf
from polychrome.kernels.tensors import cast_for_autocast


class Attentions(NamedTuple):
    """The four attentions of a batch, in the order of the paper's code; None where a layer has no use for one.

    `channel` [batch, in_channels] and `filter` [batch, out_channels] scale the channels, `spatial` [batch,
    kernel_height * kernel_width] the taps, `kernel` [batch, experts] mixes the experts.
    """

    channel: Tensor
    filter: Tensor | None
    spatial: Tensor | None
    kernel: Tensor | None


@leaf
def omni_dimensional_conv2d(
    x: Tensor,
    experts: Tensor,
    channel: Tensor,
    filter: Tensor | None,
    spatial: Tensor | None,
    kernel: Tensor | None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Return x [batch, in_channels, height, width] convolved with experts [experts, out, in/groups, kh, kw].

    The other arguments: `Attentions`, and those of `dynamic_conv2d`. Kernels of every sample and expert are never made.
    """
    x, experts = cast_for_autocast(x, experts)
    geometry = stride, padding, dilation, groups
    x = channel_scale(x, channel)
    mixing = kernel
    if spatial is not None:  # a mix for each tap
        mixing = spatial.unflatten(1, experts.shape[3:])[:, None].expand(-1, experts.shape[0], -1, -1)
        mixing = mixing if kernel is None else mixing * kernel[:, :, None, None]
    if mixing is None:
        y = per_sample_conv2d(x, experts.sum(0), None, *geometry, padding_mode=padding_mode)
    else:
        y = dynamic_conv2d(x, experts, mixing, None, *geometry, padding_mode=padding_mode)
    return y if filter is None else channel_scale(y, filter)
