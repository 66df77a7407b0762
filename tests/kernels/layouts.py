"""The same numbers, otherwise laid in memory."""

import math

import torch
from torch import Tensor


def with_gaps(tensor: Tensor) -> Tensor:
    """Return the same numbers, with as many others between them along every dimension."""
    twice = _others(tensor, *(2 * size for size in tensor.shape))
    return twice[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)


def backwards(tensor: Tensor) -> Tensor:
    """Return the same numbers with those of the first dimension side by side."""
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def elsewhere(tensor: Tensor) -> Tensor:
    """Return the same numbers behind others of the storage."""
    return torch.cat([_others(tensor, 3), tensor.flatten()])[3:].view_as(tensor)


def channels_last(tensor: Tensor) -> Tensor:
    """Return the same numbers with the channels side by side."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 1 else tensor


def _others(tensor: Tensor, *shape: int) -> Tensor:
    """Return numbers of the tensor's dtype that show in whatever reads them."""
    return tensor.new_full(shape, math.nan if tensor.is_floating_point() else 1)
