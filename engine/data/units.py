"""Whether images may be in other units than those of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from polychrome.engine.channels.names import Channels
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.sets.inspection import Stack

FAR = 10  # standard deviations of the training from its mean, where no image of it is likely to have its mean
SMALL = 1 / 50  # of the training's values in every channel: no image of it is likely to be as faint
BEYOND = 0.5  # of the range 0..1, which resizing by splines leaves by less, and standardised images by more


def far_off(images: ImageSet, found: Mapping[str, Stack], channels: Channels) -> str | None:
    """Return a line on images of a scanned set whose values are far from the training's; None without any."""
    scale, lines = 255 if images.dtype == "uint8" else 1, []
    for path in dict.fromkeys(path for split in images.splits.values() for path in split.paths):
        if path in found:
            arrangement = images.arrangements.get(path)
            sources = arrangement.sources if arrangement else range(len(channels))
            count, means, squares = found[path].moments.values
            present = {place: source for place, source in enumerate(sources) if source >= 0}
            deviations = {place: math.sqrt(squares[own] / max(count[own], 1)) / scale for place, own in present.items()}
            if line := far({place: means[own] / scale for place, own in present.items()}, channels, scale, deviations):
                lines.append(f"{images.root / path}: {line}")
    more = f" ({len(lines) - 1:,} more such images)" if len(lines) > 1 else ""
    return lines[0] + more if lines else None


def far(
    means: Mapping[int, float],
    channels: Channels,
    scale: float = 1.0,
    deviations: Mapping[int, float] | None = None,
) -> str | None:
    """Return a line on a channel whose mean over an image is `FAR` from the training's, or on all that are `SMALL`.

    None without any. `means`, and `deviations` where they are known, are by the channel's place, in the units of
    `channels`, of which files have `scale` times as much.
    """
    faint = []
    for place, mean in means.items():
        before, deviation = channels.mean[place], channels.std[place]
        has = f"channel {channels.names[place]} has a mean of {scale * mean:,.6g}"
        had = f"the training had {scale * before:,.6g} ± {scale * deviation:,.6g}"
        if abs(mean - before) > FAR * deviation:
            return f"{has}, {had}: other units?"
        size, usual = abs(mean), abs(before)
        if deviations is not None:
            size, usual = math.hypot(mean, deviations[place]), math.hypot(before, deviation)
        if 0 < size < SMALL * usual:
            faint.append(f"{has}, as faint as all others, {had}: other units?")
    return faint[0] if faint and len(faint) == len(means) else None


@torch.no_grad()
def far_tensor(
    images: Tensor, channels: Channels, stored: float, unit_range: bool, mask: Tensor | None = None
) -> str | None:
    """Return a line on the first of several images that is `far` from the training's; None without any.

    Args:
        images: [images, channels, height, width]; NaN is missing.
        stored: the divisor that makes values in the units of `channels` of the images' values.
        unit_range: whether no value of the training was outside 0..1, in these units; then images that are outside by
            more than half of it have a line, as standardised images do.
        mask: bool [images, channels], the channels that count; None for all.
    """
    values = images.float()
    means, squares = values.nanmean((2, 3)) / stored, values.square().nanmean((2, 3)) / stored**2
    deviations = (squares - means.square()).clamp_min(0).sqrt()
    low, high = values.amin((2, 3)) / stored, values.amax((2, 3)) / stored
    beyond = unit_range & ((low < -BEYOND) | (high > 1 + BEYOND))
    there = torch.ones_like(beyond) if mask is None else mask.to(images.device)
    table = torch.stack([means, deviations, low, high, beyond.float(), there.float()], 2).double().cpu().tolist()
    for rows in table:
        present = {place: row for place, row in enumerate(rows) if row[-1]}
        if line := far(
            {place: row[0] for place, row in present.items()},
            channels,
            stored,
            {place: row[1] for place, row in present.items()},
        ):
            return line
        for place, (*_, least, most, outside, _) in present.items():
            if outside:
                has = f"channel {channels.names[place]} has values from {least:,.6g} to {most:,.6g}"
                return f"{has}, the training had 0 to 1: standardised already?"
    return None
