"""Whether images may be in other units than those of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polychrome.engine.channels.names import Channels
from polychrome.engine.data.files.statistics import Moments
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.sets.inspection import Stack

FAR = 10  # standard deviations of the training from its mean, where no image of it is likely to have its mean
SMALL = 1 / 50  # of the training's values in every channel: no image of it is likely to be as faint
BEYOND = 0.5  # of the range 0..1, which resizing by splines leaves by less, and standardised images by more


def far_off(images: ImageSet, found: Mapping[str, Stack], channels: Channels) -> str | None:
    """Return a line on images of a scanned set whose values are far from the training's; None without any."""
    lines = []
    for path in images.paths:
        if path in found:
            arrangement = images.arrangements.get(path)
            sources = arrangement.sources if arrangement else range(len(channels))
            present = {place: source for place, source in enumerate(sources) if source >= 0}
            if line := far(found[path].moments, present, channels, images.dtype):
                lines.append(f"{images.root / path}: {line}")
    return summed_up(lines)


def summed_up(lines: Sequence[str]) -> str | None:
    """Return the first of the lines on images, with the number of the others; None without any."""
    more = f" ({len(lines) - 1:,} more such images)" if len(lines) > 1 else ""
    return lines[0] + more if lines else None


def far(moments: Moments, present: Mapping[int, int], channels: Channels, dtype: str) -> str | None:
    """Return a line on a channel whose mean over an image is `FAR` from the training's, or on all that are `SMALL`.

    None without any. `moments` are those of the image's values, of type `dtype`, and `present` has the place of each of
    its channels in them, by the place among the training's `channels`.
    """
    count, means, squares = moments.values
    spreads = {place: math.sqrt(squares[own] / max(count[own], 1)) for place, own in present.items()}
    values = {place: (means[own], spreads[place]) for place, own in present.items()}
    return _far(values, channels, 255 if dtype == "uint8" else 1)


def far_tensor(
    images: Tensor, channels: Channels, stored: float, unit_range: bool, mask: Tensor | None = None
) -> str | None:
    """Return the first line of `far_tensors` on images [images, channels, height, width]; None without any."""
    return next(filter(None, far_tensors(images, channels, stored, unit_range, mask)), None)


@torch.no_grad()
def far_tensors(
    images: Tensor, channels: Channels, stored: float, unit_range: bool, mask: Tensor | None = None
) -> list[str | None]:
    """Return for each image a line where it is `far` from the training's; None for others.

    Args:
        images: [images, channels, height, width]; NaN is missing.
        stored: the divisor that makes values in the units of `channels` of the images' values.
        unit_range: whether no value of the training was outside 0..1, in these units; then images that are outside by
            more than half of it have a line, as standardised images do.
        mask: bool [images, channels], the channels that count; None for all.
    """
    values = images.float()
    means = values.nanmean((2, 3))
    spreads = (values.square().nanmean((2, 3)) - means.square()).clamp_min(0).sqrt()
    low, high = values.amin((2, 3)) / stored, values.amax((2, 3)) / stored
    beyond = unit_range & ((low < -BEYOND) | (high > 1 + BEYOND))
    there = torch.ones_like(beyond) if mask is None else mask.to(images.device)
    table = torch.stack([means, spreads, low, high, beyond.float(), there.float()], 2).double().cpu().tolist()
    return [_of_rows(rows, channels, stored) for rows in table]


def _of_rows(rows: Sequence[Sequence[float]], channels: Channels, stored: float) -> str | None:
    """Return the line on an image of which a row has what `far_tensors` finds in a channel."""
    present = {place: row for place, row in enumerate(rows) if row[-1]}
    if line := _far({place: row[:2] for place, row in present.items()}, channels, stored):
        return line
    for place, (*_, least, most, outside, _) in present.items():
        if outside:
            has = f"channel {channels.names[place]} has values from {least:,.6g} to {most:,.6g}"
            return f"{has}, the training had 0 to 1: standardised already?"
    return None


def _far(values: Mapping[int, Sequence[float]], channels: Channels, stored: float) -> str | None:
    """Return the line of `far`; `values` has mean and standard deviation, as stored, by the place of a channel."""
    faint = []
    for place, (mean, spread) in values.items():
        before, deviation = stored * channels.mean[place], stored * channels.std[place]
        has = f"channel {channels.names[place]} has a mean of {mean:,.6g}"
        had = f"the training had {before:,.6g} ± {deviation:,.6g}"
        if abs(mean - before) > FAR * deviation:
            return f"{has}, {had}: other units?"
        if 0 < math.hypot(mean, spread) < SMALL * math.hypot(before, deviation):
            faint.append(f"{has}, as faint as all others, {had}: other units?")
    return faint[0] if faint and len(faint) == len(values) else None
