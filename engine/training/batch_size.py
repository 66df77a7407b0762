"""The largest batch that fits into memory, found by trial."""

from __future__ import annotations

import copy
import errno
import gc
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from polychrome.engine.errors import OutOfMemoryError
from polychrome.engine.machine import distributed
from polychrome.engine.machine.hardware import autocast
from polychrome.engine.machine.memory import PeakMemory, available, release_freed
from polychrome.engine.training.plan import Plan
from polychrome.engine.training.sync_batch_norm import alone

HEADROOM = 0.1  # the share of a fitting batch that is left free
START, MOST = 64, 1024  # larger steps are bound by arithmetic on any device, and a rate for small batches fails there
LEAST = 2  # images: batch normalisation has no variance of a single image
MULTIPLE = 8
STEPS = 4  # memory that is kept when freed fits the next step's blocks less well than the first one's
MEASURABLE = 256  # MB between two batches, far above the noise of the resident set
SIGNS = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")


def largest(try_batch: Callable[[int], None], most: int, start: int) -> int:
    """Return the largest batch size up to `most` that leaves a tenth free, above 8 a multiple of 8; 0: no size fits.

    The size doubles from `start`, then is bisected to within a sixteenth. To test the free tenth, batches up to a
    ninth above `most` are tried. Call this function outside the `except` of an earlier failure, whose frames hold the
    tensors of the failed step.

    Args:
        try_batch: takes a training step with a number of images. Errors other than exhausted memory are raised.
    """
    ceiling = math.ceil(most / (1 - HEADROOM))
    good, bad = LEAST - 1, math.inf
    size = max(LEAST, min(start, ceiling))
    _free()
    while good < ceiling and bad - good > max(1, good // 16):
        if _fits(try_batch, size):
            good = size
        else:
            bad = size
        size = min(2 * good, ceiling) if bad == math.inf else (good + int(bad)) // 2
    return 0 if good < LEAST else _with_headroom(good, most)


def largest_on_cpu(try_batch: Callable[[int], None], most: int) -> int:
    """Return the batch size that `largest` would find, at least 2, without running out of memory.

    Linux kills a process rather than refuse it memory. So the need of an image is measured, as the growth of the peak
    resident set over batches of 2, 4, 8 and so on until the growth is far above noise, and the batch size computed
    from the memory available, of which the processes of this machine have equal shares. Errors of `try_batch` are
    raised.
    """
    try_batch(LEAST)  # the optimiser's state and the threads are made by the first step alone
    size, grown = LEAST, 0.0
    _, peak = _resident(try_batch, size)
    while size < most:
        before, last = peak, grown
        rest, peak = _resident(try_batch, 2 * size)
        grown = peak - before
        # Where Linux does not let the peak be reset, an earlier, higher peak hides part of the first growth seen.
        if grown >= MEASURABLE and last > 0:
            _free()
            fixed = max(0.0, peak - rest - 2 * grown)  # such as gradients, as large for every batch
            return _with_headroom(
                int((available() / distributed.local_world_size() / 1e6 - fixed) * size / grown), most
            )
        size *= 2
    return _rounded(most)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of the device or the host is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def advice(error: BaseException, batch_size: int, largest: int, accumulate: int = 1) -> str:
    """Return the error message for a step of `batch_size` images that ran out of memory, where `largest` would fit.

    accumulate: how many such batches made a step of the optimizer.
    """
    failed = f"out of memory at batch size {batch_size}"
    if largest < 1:
        return f"{failed}; no batch would fit: take a smaller --image-size or a smaller model"
    if largest >= batch_size:
        reason = " ".join(str(error).split(". ")[0].split())
        return f"{failed} ({reason}), which fits alone: another process or the cached data took the memory"
    parts = accumulate * math.ceil(batch_size / largest)
    same = f"for steps of as many images with --accumulate {parts}"
    return f"{failed}; {largest} would fit: --batch-size {largest}, {same}"


def _fits(try_batch: Callable[[int], None], size: int) -> bool:
    try:
        try_batch(size)
        fits = True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    _free()  # here, where the error and its frames are gone
    return fits


def _resident(try_batch: Callable[[int], None], size: int) -> tuple[float, float]:
    """Return the resident set in MB before steps of `size` images, and its peak during them."""
    _free()
    memory = PeakMemory(torch.device("cpu"))
    rest = memory.megabytes()
    for _ in range(STEPS):
        try_batch(size)
    return rest, memory.megabytes()


def _free() -> None:
    """Release unused memory of the device and the host."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    else:
        release_freed()


def _with_headroom(fitting: int, most: int) -> int:
    return _rounded(min(most, max(LEAST, int(fitting * (1 - HEADROOM)))))


def _rounded(size: int) -> int:
    return size if size < MULTIPLE else size // MULTIPLE * MULTIPLE


def largest_batch(model: nn.Module, shape: tuple[int, int, int], plan: Plan, samples: int) -> int:
    """Return the largest batch of images [channels, height, width] that `model` can be trained on here.

    The result counts the images of all processes: the number of processes times the images that fit this one, at most
    1024. An epoch of `samples` images keeps at least 16 batches. The result is 0 where not even the smallest batch
    fits.
    """
    processes = distributed.world_size()
    most = max(LEAST, min(MOST, samples // 16 // processes))
    attempt = _attempt(model, shape, plan)
    if plan.device.type == "cuda":
        return processes * largest(attempt, most, min(START, most))
    return processes * largest_on_cpu(attempt, most)


def explained(
    error: Exception, size: int, model: nn.Module, shape: tuple[int, int, int], plan: Plan
) -> OutOfMemoryError:
    """Return the error that names a fitting batch size, after a step of `size` images in all ran out of memory.

    Call this function outside the `except`.
    """
    model.zero_grad()  # the failed step has left gradients
    processes = distributed.world_size()
    fits = largest(_attempt(model, shape, plan), -(-size // processes), LEAST)
    return OutOfMemoryError(advice(error, size, processes * fits, plan.accumulate))


def _attempt(model: nn.Module, shape: tuple[int, int, int], plan: Plan) -> Callable[[int], None]:
    return lambda count: step_on_random(model, shape, plan)(count)


def step_on_random(
    model: nn.Module,
    shape: tuple[int, int, int],
    plan: Plan,
    compiled: Callable[[nn.Module], nn.Module] = lambda own: own,
) -> Callable[[int], None]:
    """Return a function of a number of random images that takes a whole training step of a copy of the model.

    The step waits for no other process: after a failed step the others are elsewhere.
    """
    copies = 2 if plan.consistent else 1
    own = alone(copy.deepcopy(model)).to(plan.device, memory_format=torch.channels_last)
    plan.set_training(own)
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
