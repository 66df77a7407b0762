"""Which batch size fits: by taking steps on random images with copies of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from polychrome.engine import batch_size, distributed
from polychrome.engine.errors import OutOfMemoryError
from polychrome.engine.hardware import autocast
from polychrome.engine.plan import Plan

START = 64
MOST = 1024  # beyond it a step is bound by arithmetic on any device, and a rate found for small batches fails


def largest_batch(model: nn.Module, shape: tuple[int, int, int], plan: Plan, samples: int) -> int:
    """Return the largest batch of images [channels, height, width] that `model` can be trained on here.

    The result counts the images of all processes: the number of processes times the images that fit this one, at most
    1024. An epoch of `samples` images keeps at least 16 steps. The result is 0 where not even the smallest batch fits.
    """
    processes = distributed.world_size()
    most = max(batch_size.LEAST, min(MOST, samples // 16 // processes))
    attempt = _attempt(model, shape, plan)
    if plan.device.type == "cuda":
        return processes * batch_size.largest(attempt, most, min(START, most))
    return processes * batch_size.largest_on_cpu(attempt, most)


def explained(
    error: Exception, size: int, model: nn.Module, shape: tuple[int, int, int], plan: Plan
) -> OutOfMemoryError:
    """Return what the user is told where a step of `size` images, over all processes, ran out of memory.

    Call it outside the `except`.
    """
    model.zero_grad()  # what the step that failed has left
    processes = distributed.world_size()
    fits = batch_size.largest(_attempt(model, shape, plan), -(-size // processes), batch_size.LEAST)
    return OutOfMemoryError(batch_size.advice(error, size, processes * fits))


def _attempt(model: nn.Module, shape: tuple[int, int, int], plan: Plan) -> Callable[[int], None]:
    return lambda count: step_on_random(model, shape, plan)(count)


def step_on_random(
    model: nn.Module,
    shape: tuple[int, int, int],
    plan: Plan,
    compiled: Callable[[nn.Module], nn.Module] = lambda own: own,
) -> Callable[[int], None]:
    """Return a function that takes a training step on so many random images, with a copy of the model, to its end."""
    copies = 2 if plan.consistent else 1
    own = copy.deepcopy(model).to(plan.device, memory_format=torch.channels_last).train().requires_grad_()
    optimizer, network = plan.make_optimizer(own), compiled(own)

    def step(count: int) -> None:
        images = torch.randn(copies * count, *shape, device=plan.device).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(len(images), dtype=torch.int64, device=plan.device)
        with autocast(plan.device, plan.precision):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if plan.device.type == "cuda":
            torch.cuda.synchronize()

    return step
