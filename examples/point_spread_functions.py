"""A batch of images, each blurred with its own point-spread function, and sharpened again by gradient descent.

What a forward operator in imaging (deblurring, microscopy, astronomy) does when the blur differs from image to image,
and its size too: `per_sample_conv2d` with a kernel for each sample, made of one size by `pad_kernels`, one group a
colour, mirrored borders, and its gradient. Prints the error before and after, and writes a picture: sharp, the kernel,
blurred, restored, in a row for each sample.

    python examples/point_spread_functions.py [PICTURE.png]
"""

import math
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from polychrome.kernels import pad_kernels, per_sample_conv2d

SIZE, MARGIN = 96, 9


def scenes() -> Tensor:
    """Return four drawn images, [4, 3, SIZE, SIZE], in 0..1."""
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    radius, angle = torch.hypot(rows, columns), torch.atan2(rows, columns)
    squares = ((rows * 4).floor() + (columns * 4).floor()) % 2
    points = torch.zeros(SIZE, SIZE)
    places = torch.randint(MARGIN, SIZE - MARGIN, (2, 40), generator=torch.Generator().manual_seed(1))
    points[places[0], places[1]] = 1.0
    points = F.max_pool2d(points[None, None], 3, 1, 1)[0, 0]
    shapes = [squares, (angle * 8).sin() > 0, (radius * 12).sin() > 0, points]
    tints = torch.tensor([[1, 0.9, 0.6], [0.6, 1, 0.7], [0.6, 0.8, 1], [1, 1, 1]])
    return torch.stack([shape.float() for shape in shapes])[:, None] * tints[:, :, None, None]


def point_spread_functions() -> list[Tensor]:
    """Return four kernels [height, width] of sum one: a defocus disc, a long and a short motion, an uneven Gaussian."""
    rows, columns = _grid(11, 11)
    disc = (5.5 - torch.hypot(rows, columns)).clamp(0, 1)
    rows, columns = _grid(19, 19)
    gaussian = torch.exp(-0.5 * ((rows + columns) ** 2 / 30 + (rows - columns) ** 2 / 4))
    found = [disc, _motion(9, 17, 20, 8.5), _motion(11, 7, 110, 5.5), gaussian]
    return [kernel / kernel.sum() for kernel in found]


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each place, [height, width], from the centre."""
    return torch.meshgrid(*[torch.arange(float(size)) - size // 2 for size in (height, width)], indexing="ij")


def _motion(height: int, width: int, degrees: float, reach: float) -> Tensor:
    rows, columns = _grid(height, width)
    angle = math.radians(degrees)
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    return (1 - across.abs()).clamp(0) * (reach - along.abs()).clamp(0, 1)


def blur(images: Tensor, kernels: list[Tensor]) -> Tensor:
    """Convolve images [batch, 3, height, width] with a kernel [height, width] each, mirrored at the edges.

    A point becomes the picture of the kernel: convolution in the strict sense, for which the kernel is turned by 180
    degrees.
    """
    weight = pad_kernels([kernel.flip(0, 1) for kernel in kernels])
    weight = weight[:, None, None].expand(-1, images.shape[1], -1, -1, -1)
    return per_sample_conv2d(images, weight, padding="same", padding_mode="reflect", groups=images.shape[1])


def restore(blurred: Tensor, kernels: list[Tensor], steps: int) -> Tensor:
    """Return images whose blur is the one given: least squares by accelerated gradient descent, values in 0..1."""
    images, previous = blurred.clone(), blurred
    for step in range(steps):
        ahead = (images + step / (step + 3) * (images - previous)).requires_grad_()
        error = 0.5 * (blur(ahead, kernels) - blurred).square().sum()
        (gradient,) = torch.autograd.grad(error, ahead)
        previous, images = images, (ahead.detach() - 0.5 * gradient).clamp(0, 1)
    return images


def picture(sharp: Tensor, kernels: list[Tensor], blurred: Tensor, restored: Tensor) -> Image.Image:
    """Return sharp image, kernel, blurred and restored side by side, a row for each sample."""
    peaks = pad_kernels([kernel / kernel.max() for kernel in kernels])
    shown = F.interpolate(peaks[:, None], SIZE, mode="nearest").expand(-1, 3, -1, -1)
    tiles = [F.pad(column, [4] * 4, value=1.0) for column in (sharp, shown, blurred, restored)]
    rows = torch.cat([torch.cat(list(column), 1) for column in tiles], 2)
    pixels = (rows.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def main(path: Path | None = None, steps: int = 150) -> tuple[list[float], list[float]]:
    """Blur, restore, print and write the picture; return each image's error (RMS, of 0..1) before and after."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sharp, kernels = scenes().to(device), [kernel.to(device) for kernel in point_spread_functions()]
    blurred = blur(sharp, kernels)
    restored = restore(blurred, kernels, steps)
    before, after = ((images - sharp).square().mean((1, 2, 3)).sqrt().tolist() for images in (blurred, restored))
    for name, old, new in zip(("disc", "motion", "motion", "gaussian"), before, after, strict=True):
        print(f"{name:>8}: error {old:.3f} blurred, {new:.3f} restored")
    if path is not None:
        picture(sharp, kernels, blurred, restored).save(path)
        print(f"picture: {path}")
    return before, after


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
