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
    return min(MODES, key=lambda name: step_seconds(model, shape, batch_size, plan, name))


def step_seconds(model: nn.Module, shape: tuple[int, int, int], batch_size: int, plan: Plan, name: str) -> float:
    """Return the median seconds of a training step on images [channels, height, width] in a mode of `torch.compile`.

    Infinity where memory runs out: if it does in every mode, the training's own error names a batch size that fits.
    """
    times = []
    try:
        step = step_on_random(model, shape, plan, lambda own: torch.compile(own, mode=name, dynamic=False))
        for _ in range(WARM_UP + TIMED):
            started = time.perf_counter()
            step(batch_size)
            times.append(time.perf_counter() - started)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return inf
    finally:
        torch.compiler.reset()
    return median(times[WARM_UP:])
