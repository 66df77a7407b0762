"""Benchmark of whole layers: ODConv and a StyleGAN2-like generator, ours beside the forms of the public projects."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.kernels.modules import ModulatedConv2d, ODConv2d
from tests.kernels.written_elsewhere import OfficialODConv, StyledConv

BATCH = {"cuda": 64, "cpu": 16}
IMAGES = {"cuda": 32, "cpu": 4}
STYLE = 64
# Channels at 4, 8, 16, 32 and 64 pixels.
WIDTHS = {"cuda": (512, 512, 512, 512, 256), "cpu": (128, 128, 128, 64, 32)}


class Case(NamedTuple):
    """A layer or a step: `make(form, device)` returns a module, "ours" or "public", and its inputs.

    `run(module, inputs)` returns outputs and gradients.
    """

    name: str
    dtype: torch.dtype
    make: Callable[[str, str], tuple[nn.Module, tuple[Tensor, ...]]]
    run: Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]
    batch: Callable[[str], int]

    @property
    def key(self) -> str:
        """The case's name in the results."""
        return f"{str(self.dtype).removeprefix('torch.')} {self.name}"

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of images and weights."""
        return torch.channels_last if self.dtype == torch.bfloat16 else torch.contiguous_format


class Generator(nn.Module):
    """A StyleGAN2-like generator of 64 pixels: five sizes, two convolutions each, colours at the end.

    Styles [batch, STYLE] -> images [batch, 3, 64, 64]. The noise of StyleGAN2 is left out.
    """

    def __init__(self, layer: type[nn.Module], widths: tuple[int, ...]):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.convs = nn.ModuleList([layer(widths[0], widths[0], 3, STYLE)])
        for inner, outer in pairwise(widths):
            self.convs += [layer(inner, outer, 3, STYLE, upsample=True), layer(outer, outer, 3, STYLE)]
        self.colours = layer(widths[-1], 3, 1, STYLE, demodulate=False)

    def forward(self, styles: Tensor) -> Tensor:
        """Return images."""
        x = self.start.to(styles.dtype).expand(len(styles), -1, -1, -1)
        for conv in self.convs:
            x = F.leaky_relu(conv(x, styles), 0.2) * 2**0.5
        return self.colours(x, styles)


def generator(form: str, device: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a generator, styles, and the noise that its images are multiplied by."""
    made = Generator(ModulatedConv2d if form == "ours" else StyledConv, WIDTHS[device])
    return made, (torch.randn(IMAGES[device], STYLE), torch.randn(IMAGES[device], 3, 64, 64) / 64)


def penalty_step(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return images and the gradients of a generator's step with the path-length penalty (Karras et al. 2020).

    The penalty is on the derivative of the images by the styles: a second derivative of each convolution.
    """
    styles, noise = inputs
    styles = styles.detach().requires_grad_()
    images = model(styles)
    (slopes,) = torch.autograd.grad((images.float() * noise.float()).sum(), styles, create_graph=True)
    lengths = slopes.float().square().sum(1).sqrt()
    loss = F.softplus(-images.float()).mean() + 2 * (lengths - lengths.mean().detach()).square().mean()
    return images.detach(), *torch.autograd.grad(loss, tuple(model.parameters()))


def layer_step(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a layer's output and the gradients of its input and parameters."""
    x, grad = inputs
    x = x.detach().requires_grad_()
    y = model(x)
    return y.detach(), *torch.autograd.grad(y, (x, *model.parameters()), grad.to(y))


def odconv(channels: int, size: int, kernel: int) -> Callable[[str, str], tuple[nn.Module, tuple[Tensor, ...]]]:
    """Return what makes an ODConv layer with four experts, and its input and its output's gradient."""

    def make(form: str, device: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
        layer = ODConv2d if form == "ours" else OfficialODConv
        shape = BATCH[device], channels, size, size
        return layer(channels, channels, kernel, padding=kernel // 2), (torch.randn(shape), torch.randn(shape))

    return make


def cases() -> list[Case]:
    """Return the layers to time."""
    layers = {
        "ODConv C256 14x14": (256, 14, 3),
        "ODConv C128 28x28": (128, 28, 3),
        "ODConv C512 7x7": (512, 7, 3),
        "ODConv 1x1 C256 14x14": (256, 14, 1),
    }
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        for name, sizes in layers.items():
            found.append(Case(name, dtype, odconv(*sizes), layer_step, BATCH.__getitem__))
        found.append(Case("penalty step, 64 px", dtype, generator, penalty_step, IMAGES.__getitem__))
    return found
