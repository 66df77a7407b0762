"""The parameters of each image, drawn on the device by (seed, epoch, image index): independent of batch and rank."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from polychrome.kernels.augment.arguments import refuse
from polychrome.kernels.augment.philox import is_traced, kept, uniforms
from polychrome.kernels.checks import as_int

TRIES = 10
# The numbers of the draws: later additions take new numbers, so that existing draws keep their values.
CROP, COLOR, SPACE, TURN, RUN, CHANNELS, GAINS = range(TRIES), 16, 17, 18, 19, 32, 1 << 20
CHANNEL_ORDERS = ("all", "subset", "shuffle")


class Parameters(NamedTuple):
    """Arguments of `augment` by their names there, each with a row per image; None for a step that is skipped."""

    crops: Tensor | None
    flips: Tensor | None
    vflips: Tensor | None
    angles: Tensor | None
    brightness: Tensor | None
    contrast: Tensor | None
    gamma: Tensor | None
    grayscale: Tensor | None
    channels: Tensor | None
    cutouts: Tensor | None


@dataclass(frozen=True)
class Recipe:
    """How images are augmented; the defaults do nothing. Names follow torchvision where possible.

    scale, ratio: the range of the crop's share of the area and of its width / height (`RandomResizedCrop`); None for
        whole images.
    flip, vflip, grayscale: probabilities; an image that loses a channel, or lacks one, does not become gray, as gray is
        made of all three.
    degrees: angles are drawn from [-degrees, degrees].
    brightness, contrast, gamma: factors are drawn from [1 - value, 1 + value].
    gain: the brightness of each channel is multiplied by a factor of its own, drawn from [1 - gain, 1 + gain].
    cutout: side of a square of zeros around any pixel, as a share of the output's shorter side (DeVries and Taylor
        2017); parts beyond the edge are ignored.
    channels: "all"; "subset": how many channels are present, then which, uniformly (hierarchical channel sampling, Bao
        et al. 2023), absent channels zero; "shuffle": the same, present channels first and in random order.
    channel_bias: of "subset" and "shuffle": k channels are present in proportion to k**-channel_bias.
    channel_runs: of "subset" and "shuffle": probability that the channels present are neighbours, a run that begins
        anywhere, as a sensor has a part of the spectrum.

    Raises:
        ValueError: a value is out of range.
    """

    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    vflip: float = 0.0
    degrees: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    gain: float = 0.0
    grayscale: float = 0.0
    cutout: float = 0.0
    channels: str = "all"
    channel_bias: float = 0.0
    channel_runs: float = 0.0

    def __post_init__(self):
        ranges = {"degrees": (0.0, 180.0), "channel_bias": (-1e6, 1e6)}
        for field in fields(self):
            value, (least, most) = getattr(self, field.name), ranges.get(field.name, (0.0, 1.0))
            if isinstance(field.default, float) and not (isinstance(value, Real) and least <= value <= most):
                raise ValueError(f"{field.name} must be from {least:g} to {most:g}, got {value!r}")
        if self.gamma == 1:
            raise ValueError("gamma must be below 1, or an image could be raised to the power of 0")
        if self.scale is not None and not _is_range(self.scale, 1):
            raise ValueError(f"scale must be a range within 0 to 1, got {self.scale!r}")
        if not _is_range(self.ratio, sys.float_info.max):
            raise ValueError(f"ratio must be a range of positive numbers, got {self.ratio!r}")
        if self.channels not in CHANNEL_ORDERS:
            raise ValueError(f"channels must be one of {', '.join(CHANNEL_ORDERS)}, got {self.channels!r}")


def draw(
    recipe: Recipe,
    indices: Tensor,
    sizes: Tensor | tuple[int, int],
    seed: int,
    epoch: int,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    present: Tensor | None = None,
) -> Parameters:
    """Return the parameters of the images `indices` in an epoch, on their device.

    Each row depends on (seed, epoch, image index) alone, not on batches, ranks or order, so a whole epoch may be drawn
    at once.

    Args:
        indices: int32 or int64 [n], the images' indices in the set.
        sizes: their (height, width) in pixels, [n, 2], or one pair for all.
        seed, epoch: at least 0, below 2**64 and 2**32.
        size: (height, width) of the output; a recipe with a cutout needs it.
        channels: how many channels the images have; a recipe that samples them or has a gain needs it.
        present: bool [n, channels], the channels that each image has, at least one; others are never drawn, and are
            absent where the recipe samples channels. None: all.

    Raises:
        TypeError: `indices` or `sizes` are not integers, or `present` is not bool.
        ValueError: seed, epoch, channels or a size is no int or out of range, an argument that the recipe needs is
            missing, or, on the CPU, an image has no channel.
    """
    _check_draw(recipe, indices, sizes, seed, epoch, size, channels, present)
    order = range(CHANNELS, CHANNELS + 1 + channels // 4) if recipe.channels != "all" else ()
    crop = CROP if recipe.scale is not None else ()
    turn = [TURN] if recipe.vflip else []
    run = [RUN] if order and recipe.channel_runs else []
    gains = range(GAINS, GAINS + -(-channels // 4)) if recipe.gain else ()
    numbers = [COLOR, SPACE, *turn, *run, *order, *crop, *gains]
    drawn = uniforms(indices, seed, epoch, numbers)  # in one call: it is many small operations
    color, space = drawn[:, 0].unbind(1), drawn[:, 1].unbind(1)
    parts = len(turn), len(run), len(order), len(crop), len(gains)
    turn, run, order, crop, gains = drawn[:, 2:].split(parts, 1)
    brightness = _factor(color[0], recipe.brightness)
    if recipe.gain:
        each = _factor(gains.flatten(1)[:, :channels], recipe.gain)
        brightness = each if brightness is None else each * brightness[:, None]
    shown = _channels(recipe, order.flatten(1), run.flatten(1), channels, present)
    grayscale = color[3] < recipe.grayscale if recipe.grayscale else None
    for there in (present, None if shown is None else shown >= 0):
        if grayscale is not None and there is not None:
            grayscale = grayscale & there.all(1)
    return Parameters(
        crops=random_crops(crop, _pairs(sizes, indices), recipe.scale, recipe.ratio) if recipe.scale else None,
        flips=space[0] < recipe.flip if recipe.flip else None,
        vflips=turn[:, 0, 0] < recipe.vflip if recipe.vflip else None,
        angles=((2 * space[1] - 1) * recipe.degrees).float() if recipe.degrees else None,
        brightness=brightness,
        contrast=_factor(color[1], recipe.contrast),
        gamma=_factor(color[2], recipe.gamma),
        grayscale=grayscale,
        channels=shown,
        cutouts=_squares(space[2], space[3], recipe.cutout, size) if recipe.cutout else None,
    )


def random_crops(
    drawn: Tensor, sizes: Tensor, scale: Sequence[float] = (0.35, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)
) -> Tensor:
    """Return int64 [n, 4] of (top, left, height, width), distributed as torchvision's RandomResizedCrop.

    drawn: float64 [n, tries, 4] in [0, 1); sizes: [n, 2] of (height, width). The first try that fits its image is
    taken; where none does, the largest central crop whose width / height is within `ratio`.
    """
    height, width = sizes.double()[:, None].unbind(-1)  # [n, 1] each
    area, aspect, vertical, horizontal = drawn.unbind(-1)  # [n, tries] each
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * aspect)
    rows, columns = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    top, left = (vertical * (height - rows + 1)).floor(), (horizontal * (width - columns + 1)).floor()
    tries = torch.stack([top, left, rows, columns], -1)  # [n, tries, 4]
    first = tries.gather(1, fits.int().argmax(1)[:, None, None].expand(-1, 1, 4))[:, 0]
    return torch.where(fits.any(1, keepdim=True), first, _central(sizes.double(), ratio)).long()


def _central(sizes: Tensor, ratio: Sequence[float]) -> Tensor:
    height, width = sizes.unbind(1)
    rows = torch.minimum(height, (width / ratio[0]).round())
    columns = torch.minimum(width, (height * ratio[1]).round())
    shape = torch.stack([rows, columns], 1).clamp_min(1)
    return torch.cat([((sizes - shape) / 2).floor(), shape], 1)


def _check_draw(recipe: Recipe, indices: Tensor, sizes, seed: int, epoch: int, size, channels, present) -> None:
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be an int32 or int64 tensor [n], got {type(indices).__name__}")
    if indices.dtype not in (torch.int32, torch.int64) or indices.dim() != 1:
        raise TypeError(f"indices must be int32 or int64 [n], got {indices.dtype} {list(indices.shape)}")
    if not 0 <= _whole(seed) < 2**64 or not 0 <= _whole(epoch) < 2**32:
        raise ValueError(f"seed must be from 0 to 2**64 - 1 and epoch to 2**32 - 1, got {seed!r} and {epoch!r}")
    _check_sizes(sizes, len(indices))
    if size is not None and not _is_pair(size):
        raise ValueError(f"size must be (height, width), each an int of at least 1, got {size!r}")
    if recipe.cutout and size is None:
        raise ValueError("a recipe with a cutout needs the size of the output, got None")
    if channels is None and (recipe.gain or recipe.channels != "all"):
        raise ValueError("a recipe that samples channels, or has a gain for each, needs their number, got None")
    if channels is not None and _whole(channels) < 1:
        raise ValueError(f"channels must be an int of at least 1, got {channels!r}")
    if present is not None:
        if not isinstance(present, Tensor) or present.dtype != torch.bool:
            raise TypeError(f"present must be a bool tensor, got {getattr(present, 'dtype', type(present).__name__)}")
        if list(present.shape) != [len(indices), channels]:
            raise ValueError(f"present must be [n={len(indices)}, channels={channels}], got {list(present.shape)}")
        if _may_be_read(present):
            refuse("present", present, ~present.any(1), "true for at least one channel")


def _check_sizes(sizes, count: int) -> None:
    """Raise unless the sizes are as `draw` wants them; values on other devices than the CPU are not read."""
    wanted = f"sizes must be (height, width) or [n={count}, 2], integers of at least 1"
    if not isinstance(sizes, Tensor):
        if not _is_pair(sizes):
            raise ValueError(f"{wanted}, got {sizes!r}")
        return
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise TypeError(f"{wanted}, got {sizes.dtype}")
    if list(sizes.shape) not in ([2], [count, 2]):
        raise ValueError(f"{wanted}, got {list(sizes.shape)}")
    if _may_be_read(sizes):
        refuse("sizes", sizes.expand(count, 2), (sizes.expand(count, 2) < 1).any(1), "at least 1")


def _whole(value) -> int:
    """Return an integer of any library as an int; -1 for anything else."""
    found = as_int(value)
    return -1 if found is None else found


def _is_pair(value) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(_whole(side) >= 1 for side in value)


def _may_be_read(tensor: Tensor) -> bool:
    """Return whether reading values costs no wait, and is no fault of a trace."""
    return tensor.device.type == "cpu" and not is_traced()


def _is_range(pair, most: float) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and 0 < pair[0] <= pair[1] <= most


def _pairs(sizes: Tensor | tuple[int, int], indices: Tensor) -> Tensor:
    return torch.as_tensor(sizes, device=indices.device).expand(len(indices), 2)


def _factor(drawn: Tensor, spread: float) -> Tensor | None:
    return (1 + (2 * drawn - 1) * spread).float() if spread else None


def _squares(vertical: Tensor, horizontal: Tensor, share: float, size: tuple[int, int]) -> Tensor:
    """Return squares [n, 4] of (top, left, height, width) around uniformly drawn pixels."""
    side = max(1, round(share * min(size)))
    centre = torch.stack([vertical * size[0], horizontal * size[1]], 1).floor().long()
    return torch.cat([centre - side // 2, torch.full_like(centre, side)], 1)


def _channels(recipe: Recipe, drawn: Tensor, run: Tensor, count: int, present: Tensor | None) -> Tensor | None:
    """Return which channels are shown, [n, count], -1 for absent, from [n, count + 1 or more] drawn.

    run: drawn for runs of channels, [n, 4]; [n, 0] where the recipe has none.
    """
    if recipe.channels == "all":
        return None
    places = torch.arange(count, device=drawn.device)
    there = count if present is None else present.sum(1, keepdim=True)
    if recipe.channel_bias:
        bounds = kept(_bounds, count, recipe.channel_bias, drawn.device)
        bounds = bounds[count] if present is None else bounds[there[:, 0]]
        shown = 1 + (drawn[:, :1] >= bounds).sum(1, keepdim=True)
    else:
        shown = 1 + (drawn[:, :1] * there).floor().long()
    if present is not None:
        shown = torch.minimum(shown, there)  # none of an image that has none
    order = drawn[:, 1 : 1 + count]
    if run.numel():
        start = (run[:, 1:2] * (there - shown + 1)).floor().long()
        at = (places if present is None else present.cumsum(1) - 1) - start
        order = order.where((at >= 0) & (at < shown) | (run[:, :1] >= recipe.channel_runs), 1.0)
    chosen = (order if present is None else order.where(present, 1.0)).argsort(1)  # numbers drawn are below 1
    if recipe.channels == "shuffle":
        return chosen.where(places < shown, -1)
    rank = chosen.argsort(1)  # the inverse of the order: the place of each channel in it
    return places.where(rank < shown, -1)


def _bounds(count: int, bias: float, device: torch.device) -> Tensor:
    """Return the probabilities that no more than 1 to `count - 1` channels are shown.

    Row k of [count + 1, count - 1] is for images that have k channels; beyond these it is 2.
    """
    made = {"dtype": torch.float64, "device": "cpu"}
    bounds = torch.full((count + 1, count - 1), 2.0, **made)
    for there in range(2, count + 1):
        shares = (-bias * torch.arange(1, there + 1, **made).log()).softmax(0)
        bounds[there, : there - 1] = shares.cumsum(0)[:-1]
    return bounds.to(device)
