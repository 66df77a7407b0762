"""A small StyleGAN2 with its two gradient penalties, R1 and the path length, trained on drawn discs in a minute.

The generator is made of `ModulatedConv2d`, the discriminator of `DynamicConv2d`. R1 differentiates the discriminator's
scores by the images, the path length the images by the styles, and both are differentiated again for the weights:
second derivatives of the ops, without a switch (Mescheder et al. 2018; Karras et al. 2020). Prints losses and
penalties, and writes a picture: drawn images above, then generated ones at a third, two thirds and the end of the
steps, of the same styles.

    python examples/gradient_penalties.py [PICTURE.png]
"""

import copy
import sys
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from polychrome.kernels.modules import DynamicConv2d, ModulatedConv2d

SIZE, STYLE, BATCH = 32, 32, 16
R1, PATH_LENGTH, EVERY = 3.0, 1.0, 4  # weights of the penalties, and the steps from one to the next


class Generator(nn.Module):
    """Noise [batch, STYLE] -> styles by `mapping`; styles -> images [batch, 3, SIZE, SIZE] by `forward`."""

    def __init__(self, widths: tuple[int, ...] = (64, 64, 48, 32)):
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(STYLE, 64), nn.LeakyReLU(0.2), nn.Linear(64, STYLE))
        self.start = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.convs = nn.ModuleList([ModulatedConv2d(widths[0], widths[0], 3, STYLE)])
        for inner, outer in pairwise(widths):
            self.convs += [
                ModulatedConv2d(inner, outer, 3, STYLE, upsample=True),
                ModulatedConv2d(outer, outer, 3, STYLE),
            ]
        self.biases = nn.ParameterList([torch.zeros(conv.out_channels, 1, 1) for conv in self.convs])
        self.colours = ModulatedConv2d(widths[-1], 3, 1, STYLE, demodulate=False)

    def forward(self, styles: Tensor) -> Tensor:
        """Return images; about -1 to 1."""
        x = self.start.expand(len(styles), -1, -1, -1)
        for conv, bias in zip(self.convs, self.biases, strict=True):
            x = F.leaky_relu(conv(x, styles) + bias, 0.2) * 2**0.5
        return self.colours(x, styles)


class Discriminator(nn.Module):
    """Images [batch, 3, SIZE, SIZE] -> scores [batch], above zero for drawn ones."""

    def __init__(self, widths: tuple[int, ...] = (32, 48, 64)):
        super().__init__()
        sides = zip((3, *widths[:-1]), widths, strict=True)
        self.convs = nn.ModuleList(DynamicConv2d(inner, outer, 3, stride=2, padding=1) for inner, outer in sides)
        self.score = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * (SIZE // 8) ** 2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        for conv in self.convs:
            images = F.leaky_relu(conv(images), 0.2)
        return self.score(images).squeeze(1)


def discs(count: int, generator: torch.Generator) -> Tensor:
    """Return drawn images [count, 3, SIZE, SIZE]: a disc of any colour, place and radius on a dark ground."""
    place, radius = torch.rand(count, 2, 1, 1, generator=generator), torch.rand(count, 1, 1, generator=generator)
    colours = torch.rand(count, 3, 1, 1, generator=generator)
    colours = colours / colours.amax(1, keepdim=True)
    rows, columns = torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij")
    place, radius = 0.3 + 0.4 * place, 0.12 + 0.13 * radius
    distance = torch.hypot(rows - place[:, 0], columns - place[:, 1])
    inside = ((radius - distance) * SIZE).clamp(0, 1)[:, None]
    return 2 * inside * colours + 0.2 * (1 - inside) - 1


def r1(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Return half the mean square of the scores' derivative by drawn images."""
    images = images.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return slopes.square().sum((1, 2, 3)).mean() / 2


def path_length(generator: nn.Module, styles: Tensor, mean: Tensor) -> Tensor:
    """Return the mean square of the lengths' distance from `mean`, their moving average, which this updates.

    A length is the norm of the derivative, by a style, of the image times noise.
    """
    images = generator(styles)
    noise = torch.randn_like(images) / SIZE
    (slopes,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    lengths = slopes.square().sum(1).sqrt()
    mean.lerp_(lengths.detach().mean(), 0.05)
    return (lengths - mean).square().mean()


def main(path: Path | None = None, steps: int = 900) -> dict[str, list[float]]:
    """Train, print and draw; return both penalties over the steps."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    drawn = torch.Generator().manual_seed(0)
    generator, discriminator = Generator().to(device), Discriminator().to(device)
    average = copy.deepcopy(generator)
    optimizers = [torch.optim.Adam(net.parameters(), lr=3e-3, betas=(0.0, 0.99)) for net in (generator, discriminator)]
    shown, mean = torch.randn(8, STYLE, device=device), torch.zeros((), device=device)
    rows, found = [discs(8, drawn)], {"R1": [], "path length": []}
    for step in range(1, steps + 1):
        real = discs(BATCH, drawn).to(device)
        styles = generator.mapping(torch.randn(BATCH, STYLE, device=device))
        loss = F.softplus(discriminator(generator(styles).detach())).mean() + F.softplus(-discriminator(real)).mean()
        if step % EVERY == 0:
            penalty = r1(discriminator, real)
            found["R1"].append(penalty.item())
            loss = loss + EVERY * R1 * penalty
        _step(optimizers[1], loss)
        loss = F.softplus(-discriminator(generator(styles))).mean()
        if step % EVERY == 0:
            penalty = path_length(generator, generator.mapping(torch.randn(BATCH, STYLE, device=device)), mean)
            found["path length"].append(penalty.item())
            loss = loss + EVERY * PATH_LENGTH * penalty
        _step(optimizers[0], loss)
        with torch.no_grad():
            for one, other in zip(average.parameters(), generator.parameters(), strict=True):
                one.lerp_(other, 0.02)
        if step % (steps // 3) == 0:
            penalties = ", ".join(f"{name} {values[-1]:.4f}" for name, values in found.items())
            print(f"step {step}: generator's loss {loss.item():.2f}, {penalties}")
            with torch.no_grad():
                rows.append(average(average.mapping(shown)).cpu())
    if path is not None:
        _draw(rows, path)
        print(f"picture: {path}")
    return found


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _draw(rows: list[Tensor], path: Path, gap: int = 4, scale: int = 2) -> None:
    """Write rows of images [count, 3, SIZE, SIZE] as a PNG, each pixel `scale` wide."""
    pictures = torch.stack([F.pad(row.clamp(-1, 1) / 2 + 0.5, [gap // 2] * 4, value=1.0) for row in rows])
    sheet = pictures.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    sheet = (255 * sheet).round().byte().repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    Image.fromarray(sheet.numpy()).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
