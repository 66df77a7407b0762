"""Learning rates as functions of the position in a training, so that a resumed run has no scheduler to restore."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

NAMES = ("constant", "cosine", "linear", "onecycle")
WARMUP_START = 0.01  # of the rate, at the first step of a warm-up
ONECYCLE_RISE = 0.3  # of the training, up to the peak
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / 25e4  # of the peak


def factor(name: str, position: float, epochs: int, warmup: float = 0.0) -> float:
    """Return the factor of the base rate after `position` of `epochs` epochs, position = epoch - 1 + step / steps.

    name: "constant"; "cosine" and "linear" fall from 1 to 0 over the epochs that the warm-up leaves; "onecycle" rises
        from 1/25 to 1 over the first 30% and falls to 1/250000, both along a cosine (Smith and Topin 2017, as torch's
        OneCycleLR; the momentum stays as it is).
    warmup: epochs over which the rate rises in a straight line from 1% before the schedule starts.

    Raises:
        ValueError: the name is none of `NAMES`, the warm-up is not within 0 <= warmup < epochs, or onecycle, which has
            a warm-up of its own, is given another.
    """
    if name not in NAMES:
        raise ValueError(f"schedule must be one of {', '.join(NAMES)}, got {name}")
    if not 0 <= warmup < epochs:
        raise ValueError(f"warmup must be at least 0 and under epochs={epochs}, got {warmup}")
    if name == "onecycle":
        if warmup:
            raise ValueError(f"onecycle has a warm-up of its own: warmup must be 0, got {warmup}")
        return _onecycle(min(position / epochs, 1))
    if position < warmup:
        return WARMUP_START + (1 - WARMUP_START) * position / warmup
    done = min((position - warmup) / (epochs - warmup), 1)
    if name == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if name == "linear" else 1.0


def plateau(accuracies: Iterable[float], lr: float) -> float:
    """Return the rate after epochs of these accuracies: a tenth whenever more than 3 epochs in a row do not improve."""
    replay = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(replay, mode="max", factor=0.1, patience=3, threshold=0.0)
    for accuracy in accuracies:
        scheduler.step(accuracy)
    return replay.param_groups[0]["lr"]


def _onecycle(done: float) -> float:
    """Return onecycle's factor at the fraction `done` of a training."""
    if done < ONECYCLE_RISE:
        return _along_cosine(ONECYCLE_START, 1, done / ONECYCLE_RISE)
    return _along_cosine(1, ONECYCLE_END, (done - ONECYCLE_RISE) / (1 - ONECYCLE_RISE))


def _along_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))
