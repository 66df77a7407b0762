"""The base of report C's CNNs for one image size."""

from collections.abc import Iterable

from torch import Tensor, nn

from polychrome.kernels.checks import as_int

POOLED = 16  # four poolings by 2: each rounds an odd height or width down


class FixedSizeCNN(nn.Module):
    """Four blocks that each pool by 2, then `head`, which a subclass sets, on the `flat` values of the last map.

    Raises:
        ValueError: `image_size` is below 16; in `forward`, an image has another size.
    """

    any_channels = False

    def __init__(self, image_size: int, blocks: Iterable[nn.Module], width: int):
        """Use `blocks`, the last of which has `width` channels, for images of `image_size` pixels a side."""
        super().__init__()
        size = as_int(image_size)
        if size is None or size < POOLED:
            raise ValueError(f"image_size must be a whole number of at least {POOLED} pixels, got {image_size!r}")
        self.image_size = size
        self.features = nn.Sequential(*blocks)
        self.flat = width * (size // POOLED) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, image_size, image_size] to logits [batch, num_classes]."""
        height, width = x.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be {self.image_size}x{self.image_size}, got {height}x{width}: "
                "resize them, or make the model with another image_size"
            )
        return self.head(self.features(x))
