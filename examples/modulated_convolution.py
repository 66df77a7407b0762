"""StyleGAN2's modulated convolution through `per_sample_conv2d`.

A style vector scales the input channels of the kernel, and demodulation brings each output channel's kernel back to
norm one (Karras et al. 2020), so every sample has its own kernel. Trains a tiny generator to paint each sample in the
colour that its style asks for. Prints the difference from the usual form, a convolution with a group for each sample,
and the loss before and after.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polychrome.kernels import per_sample_conv2d


class ModulatedConv2d(nn.Module):
    """x [batch, in_channels, height, width] and a style [batch, style] -> [batch, out_channels, height, width]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, style: int, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.scales = nn.Linear(style, in_channels)
        nn.init.ones_(self.scales.bias)
        self.gain = self.weight[0].numel() ** -0.5
        self.demodulate = demodulate

    def kernels(self, style: Tensor) -> Tensor:
        """Return each sample's kernel, [batch, out_channels, in_channels, kernel_size, kernel_size]."""
        weight = self.gain * self.weight * self.scales(style)[:, None, :, None, None]
        if self.demodulate:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        return weight

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolve each sample with the kernel of its style."""
        return per_sample_conv2d(x, self.kernels(style), padding="same")


class Generator(nn.Module):
    """A constant, a modulated 3x3 convolution, and one to colours: a style [batch, style] -> [batch, 3, size, size]."""

    def __init__(self, style: int = 8, width: int = 16, size: int = 16):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, width, size, size))
        self.conv = ModulatedConv2d(width, width, 3, style)
        self.to_colour = ModulatedConv2d(width, 3, 1, style, demodulate=False)

    def forward(self, style: Tensor) -> Tensor:
        """Return the pictures."""
        x = F.leaky_relu(self.conv(self.start.expand(len(style), -1, -1, -1), style), 0.2)
        return self.to_colour(x, style)


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """Return the same by the usual form: one convolution with a group for each sample."""
    batch, out_channels, _, kernel, _ = weight.shape
    y = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), padding=kernel // 2, groups=batch)
    return y.view(batch, out_channels, *x.shape[2:])


def main(steps: int = 100) -> tuple[float, float, float]:
    """Compare, train and print; return the difference and the losses before and after."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = Generator().to(device)
    with torch.no_grad():
        x, style = torch.randn(8, 16, 16, 16, device=device), torch.randn(8, 8, device=device)
        weight = generator.conv.kernels(style)
        with torch.backends.cudnn.flags(allow_tf32=False):
            difference = (per_sample_conv2d(x, weight, padding="same") - grouped(x, weight)).abs().max().item()
    print(f"largest difference from the grouped form: {difference:.1e}")
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        style = torch.randn(16, 8, device=device)
        colours = style[:, :3, None, None].tanh()
        loss = F.mse_loss(generator(style), colours.expand(-1, -1, 16, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")
    return difference, losses[0], losses[-1]


if __name__ == "__main__":
    main()
