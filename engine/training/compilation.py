"""How a model is compiled: the mode that is fastest here."""

from __future__ import annotations

import time
from math import inf
from statistics import median

import torch
from torch import nn

from polychrome.engine.training.batch_size import is_out_of_memory, step_on_random
from polychrome.engine.training.plan import Plan

MODES = ("default", "reduce-overhead")  # the second records CUDA graphs
WARM_UP, TIMED = 5, 10
WORTH_MEASURING = 5_000  # steps: each mode takes up to a minute to compile


def mode(model: nn.Module, shape: tuple[int, int, int], batch_size: int, plan: Plan, steps: int) -> str:
    """Return the mode of `torch.compile` whose training step is the shortest, measured on random images.

    Without a GPU, or where the training has few steps, that is "default" without a measurement.
    """
    if plan.device.type != "cuda" or steps < WORTH_MEASURING:
        return MODES[0]
    return min(MODES, key=lambda name: _seconds_or_infinity(model, shape, batch_size, plan, name))


def _seconds_or_infinity(
    model: nn.Module, shape: tuple[int, int, int], batch_size: int, plan: Plan, name: str
) -> float:
    # Memory that runs out in every mode runs out in the training too, whose error names a batch size that fits.
    try:
        return step_seconds(model, shape, batch_size, plan, name)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return inf


def step_seconds(model: nn.Module, shape: tuple[int, int, int], batch_size: int, plan: Plan, name: str) -> float:
    """Return the median seconds of a training step of `batch_size` images [channels, height, width] in a mode."""
    step = step_on_random(model, shape, plan, lambda own: torch.compile(own, mode=name, dynamic=False))
    try:
        for _ in range(WARM_UP):
            step(batch_size)
        times = []
        for _ in range(TIMED):
            started = time.perf_counter()
            step(batch_size)
            times.append(time.perf_counter() - started)
    finally:
        torch.compiler.reset()
    return median(times)
