"""Draw `augment`'s output beside torchvision's on one photograph: `python -m bench.report.augment_picture`."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import cbook
from PIL import Image
from torchvision.transforms.v2 import functional

from polychrome.kernels import augment

PICTURE = Path(__file__).resolve().parents[2] / "kernels" / "augment" / "augment.jpg"
CROP = (20, 90, 300, 300)
SIZE = 224


BLACK = torch.zeros(3, 1, 1, dtype=torch.uint8)
RED_AND_BLUE = torch.tensor([1, 0, 1], dtype=torch.uint8)[:, None, None]
TRUE, BILINEAR = torch.tensor([True]), functional.InterpolationMode.BILINEAR
# By column: arguments of `augment`, and torchvision's function of the resized crop [3, height, width].
STEPS: dict[str, tuple[dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "crop, resize": ({}, lambda image: image),
    "flip": ({"flips": TRUE}, functional.horizontal_flip),
    "rotate 20°": ({"angles": torch.tensor([20.0])}, lambda image: functional.rotate(image, 20, BILINEAR)),
    "brightness 1.4": ({"brightness": torch.tensor([1.4])}, lambda image: functional.adjust_brightness(image, 1.4)),
    "gamma 2": ({"gamma": torch.tensor([2.0])}, lambda image: functional.adjust_gamma(image, 2)),
    "grayscale": ({"grayscale": TRUE}, lambda image: functional.rgb_to_grayscale(image, 3)),
    "cutout": (
        {"cutouts": torch.tensor([[60, 80, 80, 80]])},
        lambda image: functional.erase(image, 60, 80, 80, 80, BLACK),
    ),
    "channel absent": ({"channels": torch.tensor([0, -1, 2])}, lambda image: image * RED_AND_BLUE),
}


def photograph() -> torch.Tensor:
    """Return the photograph that comes with Matplotlib, uint8 [height, width, 3]."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return torch.from_numpy(np.array(Image.open(file).convert("RGB")))


def draw(path: Path = PICTURE) -> None:
    """Write the picture: our output, torchvision's, and twenty times their difference."""
    photo = photograph()
    resized = functional.resized_crop(photo.permute(2, 0, 1), *CROP, [SIZE, SIZE], antialias=True)
    figure, axes = plt.subplots(3, len(STEPS), figsize=(1.5 * len(STEPS), 4.9), layout="constrained")
    for column, (name, (arguments, by_torchvision)) in zip(axes.T, STEPS.items(), strict=True):
        ours = augment(photo[None], torch.tensor([CROP]), size=SIZE, **arguments)[0]
        theirs = by_torchvision(resized).float() / 255
        difference = (ours - theirs).abs()
        for axis, image in zip(column, (ours, theirs, 20 * difference), strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[])
        column[0].set_title(name, fontsize=9)
        column[2].set_xlabel(f"mean {255 * difference.mean():.2f}/255", fontsize=8)
    for axis, name in zip(axes[:, 0], ("augment", "torchvision", "20 x difference"), strict=True):
        axis.set_ylabel(name, fontsize=9)
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 88})
    plt.close(figure)


if __name__ == "__main__":
    draw()
