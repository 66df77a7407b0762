"""Channel combinations: their names, the two test protocols, and the sampling of channels in training."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from engine.errors import UserError

RGB = ("R", "G", "B")
FULL = "RGB"

# The order in which the reports list the combinations of three channels.
_REPORTED = ("RGB", "RG", "GB", "RB", "R", "G", "B")


def all_combinations(names: tuple[str, ...] = RGB) -> tuple[str, ...]:
    """Return every non-empty combination of the channel names, the largest first."""
    if names == RGB:
        return _REPORTED
    return tuple("".join(chosen) for size in range(len(names), 0, -1) for chosen in combinations(names, size))


def parse(wanted: tuple[str, ...], names: tuple[str, ...] = RGB) -> tuple[str, ...]:
    """Return the combinations the user asked for; ("all",) stands for every one.

    Raises:
        UserError: a combination names a channel that is not there, or one twice.
    """
    if wanted == ("all",):
        return all_combinations(names)
    for combination in wanted:
        indices(combination, names)
        if wanted.count(combination) > 1:
            raise UserError(f"channels {combination!r} are named {wanted.count(combination)} times")
    return wanted


def indices(combination: str, names: tuple[str, ...] = RGB) -> list[int]:
    """Return the positions of a combination's channels, in the order it names them.

    Raises:
        UserError: as `parse`.
    """
    unknown = [channel for channel in combination if channel not in names]
    if not combination:
        raise UserError(f"channels must name at least one of {', '.join(names)}")
    if unknown:
        raise UserError(f"channels {combination!r}: no channel {''.join(unknown)!r}; the data has {', '.join(names)}")
    if len(set(combination)) != len(combination):
        raise UserError(f"channels {combination!r}: a channel is named twice")
    return [names.index(channel) for channel in combination]


def protocol(model: torch.nn.Module) -> str:
    """Return "subset" for a model that takes any channel count, else "zero-pad"."""
    return "subset" if getattr(model, "any_channels", False) else "zero-pad"


def select(images: Tensor, combination: str, how: str, names: tuple[str, ...] = RGB) -> Tensor:
    """Return what a model is shown of `images` [batch, channels, height, width] when only `combination` is present.

    Under "subset" the tensor has only these channels; under "zero-pad" all of them, the absent ones zero
    (after normalisation, so an absent channel looks like a constant mean).
    """
    chosen = indices(combination, names)
    if how == "subset":
        return images if chosen == list(range(len(names))) else images[:, chosen]
    mask = torch.zeros(len(names), dtype=images.dtype, device=images.device)
    mask[chosen] = 1
    return images * mask[:, None, None]


def sample_masks(batch: int, channels: int, generator: torch.Generator) -> Tensor:
    """Return a mask [batch, channels], bool: for each sample how many channels, uniformly, then which, uniformly.

    This is hierarchical channel sampling (ChannelViT, arXiv 2309.16108), drawn per sample on the generator's
    device, so that shapes stay static.
    """
    device = generator.device
    count = torch.randint(1, channels + 1, (batch, 1), generator=generator, device=device)
    rank = torch.rand(batch, channels, generator=generator, device=device).argsort(1).argsort(1)
    return rank < count
