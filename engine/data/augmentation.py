"""Which augmentations an epoch of training uses."""

from __future__ import annotations

from dataclasses import dataclass

from polychrome.engine.errors import UserError
from polychrome.kernels.augment import Recipe

DEFAULT = ("crop", "flip")
NAMES = (*DEFAULT, "vflip", "rotation", "jitter", "gamma", "grayscale")
DEGREES, JITTER, GAMMA, GRAYSCALE = 15.0, 0.2, 0.2, 0.1
# The number of image sizes of a training with growing images, and their step in pixels.
SIZES, STEP = 5, 4


@dataclass(frozen=True)
class Augmentations:
    """The augmentations of a training's images.

    names: some of "crop" (a random crop, else the centre), "flip" and "vflip" (mirrored in half the cases), "rotation"
        (within 15 degrees), "jitter" (brightness and contrast within 20%), "gamma" (within 20%) and "grayscale" (a
        tenth of the images, of those that are shown with all channels).
    one_at_a_time: the `epochs` are cut into as many successive passes as there are names, each with one of them alone
        (report E's schedule).
    crop_scale: the range of the share of the area that a random crop keeps; `crop_ratio` that of width / height.
    progressive: the first epoch's share of the height and width that images are resized to, see `size`.
    """

    names: tuple[str, ...] = DEFAULT
    one_at_a_time: bool = False
    epochs: int = 1
    crop_scale: tuple[float, float] = (0.35, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    progressive: float = 1.0

    def at(self, epoch: int) -> tuple[str, ...]:
        """Return the names that hold in an epoch, which counts from 1."""
        return (self.names[self.pass_of(epoch)],) if self.one_at_a_time and self.names else self.names

    def pass_of(self, epoch: int) -> int:
        """Return the number, from 0, of the pass that an epoch belongs to; 0 where all augmentations hold at once."""
        if not self.one_at_a_time or not self.names:
            return 0
        return min(max(epoch - 1, 0) * len(self.names) // self.epochs, len(self.names) - 1)

    @property
    def unused(self) -> tuple[str, ...]:
        """The names that hold in no epoch: some, where there are fewer epochs than names that hold one at a time."""
        if not self.one_at_a_time or self.epochs >= len(self.names):
            return ()
        passes = {self.pass_of(epoch) for epoch in range(1, self.epochs + 1)}
        return tuple(name for number, name in enumerate(self.names) if number not in passes)

    def size(self, epoch: int, full: int) -> int:
        """Return height and width of the images in an epoch: `full` in the end, before it up to four smaller sizes.

        The size grows from `progressive` times `full` in equal steps over the `epochs`, rounded to multiples of 4
        pixels below `full` but not to 0, and is full in the last fifth of the epochs.
        """
        done = max(epoch - 1, 0) / (self.epochs - 1) if epoch < self.epochs and self.epochs > 1 else 1.0
        missing = 1 - min(int(done * SIZES), SIZES - 1) / (SIZES - 1)
        return max(full - STEP * round(full * (1 - self.progressive) * missing / STEP), min(full, STEP))

    def recipe(self, epoch: int) -> Recipe:
        """Return the recipe by which an epoch's images are augmented; epochs count from 1."""
        names = self.at(epoch)
        return Recipe(
            scale=self.crop_scale if "crop" in names else None,
            ratio=self.crop_ratio,
            flip=0.5 * ("flip" in names),
            vflip=0.5 * ("vflip" in names),
            degrees=DEGREES * ("rotation" in names),
            brightness=JITTER * ("jitter" in names),
            contrast=JITTER * ("jitter" in names),
            gamma=GAMMA * ("gamma" in names),
            grayscale=GRAYSCALE * ("grayscale" in names),
        )


def check(names: tuple[str, ...], dtype: str, channels: int, differ: bool = False) -> None:
    """Raise UserError where images of this kind, which may `differ` in their channels, cannot be augmented so."""
    for name in names:
        if dtype != "uint8" and name in ("rotation", "jitter", "gamma", "grayscale"):
            raise UserError(f"augmentation {name} needs 8-bit images: leave it out of --augmentations")
        if name == "grayscale" and (channels != 3 or differ):
            found = f"the data has {channels}" if channels != 3 else "some images have fewer"
            raise UserError(f"augmentation grayscale needs 3 channels, {found}")
