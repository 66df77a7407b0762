"""Convolutions with kernels that another network makes."""

from torch import Tensor, nn

from polychrome.kernels.dynamic_conv import per_sample_conv1d, per_sample_conv2d
from polychrome.kernels.dynamic_conv.api import Padding, Pair
from polychrome.kernels.dynamic_conv.borders import check_mode
from polychrome.kernels.dynamic_conv.problem import resolve_ints, resolve_padding
from polychrome.kernels.modules.layers import GEOMETRY, checked_size, mode_of


class _PerSample(nn.Module):
    """The arguments of a convolution of `dims` dimensions without a kernel of its own."""

    def __init__(self, dims: int, stride, padding, dilation, groups: int, padding_mode: str):
        super().__init__()
        steps, reaches = (resolve_ints(n, v, dims) for n, v in (("stride", stride), ("dilation", dilation)))
        resolve_padding(padding, [1] * dims, steps, reaches)
        check_mode(padding_mode)
        self.stride, self.padding, self.dilation, self.padding_mode = stride, padding, dilation, padding_mode
        self.groups = checked_size("groups", groups, least=1)

    @property
    def _geometry(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.groups

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in GEOMETRY + mode_of(self))


class PerSampleConv2d(_PerSample):
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
        super().__init__(2, stride, padding, dilation, groups, padding_mode)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `polychrome.kernels.per_sample_conv2d`."""
        return per_sample_conv2d(x, weight, bias, *self._geometry, padding_mode=self.padding_mode)


class PerSampleConv1d(_PerSample):
    """Convolve each sample of [batch, in_channels, length] with the kernel given for it. No parameters.

    Raises:
        ValueError: stride, padding, dilation or groups is out of range.
    """

    def __init__(
        self,
        stride: int = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ):
        super().__init__(1, stride, padding, dilation, groups, padding_mode)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `polychrome.kernels.per_sample_conv1d`."""
        return per_sample_conv1d(x, weight, bias, *self._geometry, padding_mode=self.padding_mode)
