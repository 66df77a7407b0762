"""Modulated convolution as a layer, StyleGAN2's."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.kernels.checks import check_device, check_float, check_shape
from polychrome.kernels.dynamic_conv import per_sample_conv2d
from polychrome.kernels.leaves import leaf
from polychrome.kernels.modulated import modulated_conv2d
from polychrome.kernels.modules.layers import FiveDimensional, Lasting, checked_size
from polychrome.kernels.tensors import wide_dtype, without_autocast


class ModulatedConv2d(FiveDimensional):
    """Convolve with one kernel whose input channels each sample's style scales (StyleGAN2, Karras et al. 2020).

    `demodulate` divides each output channel by the norm of its scaled kernel. `upsample` doubles height and width by a
    transposed convolution, blurred by `blur_kernel` afterwards; `downsample` halves them, blurred before. Left out,
    `padding` is kernel_size // 2; StyleGAN3 has kernel_size - 1. Learning rates are equalised: the weights start with
    variance one and are scaled when used.

    State dict, in the names of rosinality's stylegan2-pytorch, whose weights load:
        `weight` [1, out_channels, in_channels, kernel_size, kernel_size]; of NVIDIA's layers `weight.unsqueeze(0)`
        `modulation.weight` [in_channels, style_dim], `modulation.bias` [in_channels]; NVIDIA's `affine`
        `blur.kernel` [taps, taps], a buffer, with `upsample` or `downsample`

    Raises:
        ValueError: a size, the padding or eps is out of range, `upsample` and `downsample` are both set, the padding is
            given with one of them, or blur_kernel has no taps or the sum zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        demodulate: bool = True,
        upsample: bool = False,
        downsample: bool = False,
        blur_kernel: Sequence[float] = (1, 3, 3, 1),
        *,
        padding: int | None = None,
        eps: float = 1e-8,
        device=None,
        dtype=None,
    ):
        super().__init__()
        given = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        self.in_channels, self.out_channels, self.kernel_size = (checked_size(*each, least=1) for each in given.items())
        style_dim = checked_size("style_dim", style_dim, least=1)
        if upsample and downsample:
            raise ValueError("upsample and downsample must not both be set")
        if padding is not None and (upsample or downsample):
            raise ValueError("padding must be left out with upsample or downsample, which fix it")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps!r}")
        self.demodulate, self.upsample, self.downsample, self.eps = demodulate, upsample, downsample, eps
        self.padding = self.kernel_size // 2 if padding is None else checked_size("padding", padding, least=0)
        made = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(1, out_channels, in_channels, kernel_size, kernel_size, **made))
        self.modulation = Modulation(style_dim, in_channels, **made)
        self.blur = None
        if upsample or downsample:
            excess = len(blur_kernel) - 2 + (1 - kernel_size if upsample else kernel_size - 1)
            before = (excess + 1) // 2 + (1 if upsample else 0)
            after = excess // 2 + (1 if upsample else 0)
            channels = out_channels if upsample else in_channels
            self.blur = Blur(channels, blur_kernel, (before, after), gain=4 if upsample else 1, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the parameters."""
        nn.init.normal_(self.weight)
        self.modulation.reset_parameters()

    def forward(self, x: Tensor, style: Tensor, input_gain: Tensor | None = None) -> Tensor:
        """Return `polychrome.kernels.modulated_conv2d` of x [batch, in_channels, height, width].

        style: [batch, style_dim], any float dtype. input_gain: StyleGAN3's, [], [in_channels] or [batch, in_channels].

        Raises:
            ValueError, TypeError, RuntimeError: as `polychrome.kernels.modulated_conv2d`.
        """
        weight = self.weight.squeeze(0)
        weight = weight / math.sqrt(weight[0].numel())
        style, options = self.modulation(style), {"demodulate": self.demodulate, "eps": self.eps}
        if self.upsample:
            y = modulated_conv2d(x, weight, style, 2, 0, transposed=True, input_gain=input_gain, **options)
            return self.blur(y)
        if self.downsample:
            return modulated_conv2d(self.blur(x), weight, style, 2, 0, input_gain=input_gain, **options)
        return modulated_conv2d(x, weight, style, 1, self.padding, input_gain=input_gain, **options)

    def extra_repr(self) -> str:
        words = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}", f"padding={self.padding}"]
        words += ["demodulate=False"] * (not self.demodulate)
        return ", ".join([*words, *["upsample"] * self.upsample, *["downsample"] * self.downsample])


class Modulation(nn.Module):
    """The scale of each channel from a style, [batch, style_dim] -> [batch, channels], in float32; one at the start.

    A linear layer with an equalised learning rate. State dict: see `ModulatedConv2d`.
    """

    def __init__(self, style_dim: int, channels: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, style_dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Reinitialise the parameters."""
        nn.init.normal_(self.weight)
        nn.init.ones_(self.bias)

    def forward(self, style: Tensor) -> Tensor:
        """Return the scales (float64 for a layer of float64), under autocast too."""
        return _modulation(style, self.weight, self.bias)


@leaf
def _modulation(style: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    check_float("style", style)
    check_device("style", style, weight, "the layer's")
    check_shape("style", style, batch=None, style_dim=weight.shape[1])
    wide = wide_dtype(weight.dtype)
    with without_autocast(style):
        return F.linear(style.to(wide), weight.to(wide) / math.sqrt(weight.shape[1]), bias.to(wide))


class Blur(Lasting):
    """Every channel convolved with the outer product of a filter with itself, whose sum is `gain`.

    `padding`: zeros before and after each axis; where negative, x is cut. Buffer: `kernel` [taps, taps].

    Raises:
        ValueError: the filter has no taps, or its sum is zero.
    """

    LASTING = "kernel"

    def __init__(
        self,
        channels: int,
        taps: Sequence[float],
        padding: tuple[int, int],
        gain: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        filter = torch.tensor(tuple(taps), dtype=torch.float64, device="cpu")
        if filter.dim() != 1 or not len(filter) or not filter.sum():
            raise ValueError(f"blur_kernel must be numbers whose sum is not zero, got {taps!r}")
        kernel = filter[:, None] * filter[None, :]
        self.first_kernel = (kernel * gain / kernel.sum()).tolist()
        self.register_buffer("kernel", self._first(device, dtype or torch.float32))
        self.channels, self.padding = channels, padding

    def _first(self, device, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self.first_kernel, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width], blurred in x's dtype."""
        return _blurred(x, self.kernel, self.channels, self.padding)

    def extra_repr(self) -> str:
        return f"padding={self.padding}"


@leaf
def _blurred(x: Tensor, kernel: Tensor, channels: int, padding: tuple[int, int]) -> Tensor:
    check_float("x", x)
    check_shape("x", x, batch=None, channels=channels, height=None, width=None)
    if min(padding) < 0:
        x, padding = F.pad(x, padding * 2), (0, 0)
    taps = kernel.flip(0, 1).to(x.dtype)  # a convolution in the sense of signals: torch's does not flip
    weight = taps.expand(channels, 1, *taps.shape)
    return per_sample_conv2d(x, weight, None, 1, padding * 2, groups=channels)
