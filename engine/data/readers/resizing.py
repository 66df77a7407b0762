"""The definition of a resized image on the CPU, and threads that fill batches with resized images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from threading import Barrier

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize(crop: Tensor, size: int, flip: bool) -> Tensor:
    """Return a crop [channels, height, width] as [channels, size, size], antialiased, and mirrored with `flip`.

    A crop of this size is not resampled.
    """
    if crop.shape[1:] != (size, size):
        # To torch a batch of one is channels last if made of [height, width, channels], and not if made of `crop`.
        batch = crop.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        crop = F.interpolate(batch, (size, size), mode="bilinear", antialias=True)[0]
    return crop.flip(-1) if flip else crop


def cropped(image: np.ndarray, crop: np.ndarray, flip: bool, size: int) -> Tensor:
    """Return the part (top, left, height, width) of an image [height, width, channels], resized as `resize` does."""
    top, left, height, width = crop.tolist()
    # Gathered first: the result is then channels last as well, and faster to make and to copy. Images mapped from a
    # file cannot be written to, which torch warns about.
    part = torch.from_numpy(np.require(image[top : top + height, left : left + width], requirements=["C", "W"]))
    return resize(part.permute(2, 0, 1), size, flip)


def empty(count: int, size: int, channels: int, dtype: torch.dtype, pinned: bool = False) -> Tensor:
    """Return a batch [count, channels, size, size] to be filled, channels last in memory."""
    return torch.empty(count, size, size, channels, dtype=dtype, pin_memory=pinned).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Filling:
    """A batch that threads are filling."""

    images: Tensor
    parts: list[Future]

    def finished(self) -> Tensor:
        """Return the batch once it is full; an error in a thread is raised here."""
        for part in self.parts:
            part.result()
        return self.images


class Filler:
    """Threads that each fill a share of a batch."""

    def __init__(self, threads: int):
        self._threads, self._pool = threads, single_threaded_pool(threads)

    def start(self, images: Tensor, image: Callable[[int], Tensor]) -> Filling:
        """Begin to set each `images[i]` of [batch, channels, height, width], of any dtype and layout, to `image(i)`."""

        def fill(part: np.ndarray) -> None:
            for i in part.tolist():
                images[i] = image(i)

        parts = np.array_split(np.arange(len(images)), self._threads)
        return Filling(images, [self._pool.submit(fill, part) for part in parts])

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def one_ahead(fillings: Iterable[Filling]) -> Iterator[Tensor]:
    """Yield the batches, each while the threads fill the next."""
    before = None
    for filling in chain(fillings, [None]):
        if before is not None:
            yield before.finished()
        before = filling


def single_threaded_pool(count: int) -> ThreadPoolExecutor:
    """Start threads in which torch uses no further threads; a team for each, on busy cores, is ten times slower."""
    usual, started = torch.get_num_threads(), Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "resize", initializer=_use_one_thread)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(usual)  # each thread has its own setting, but threads to come take the last setting made
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # or torch would set this thread up afresh at its first operation
    torch.set_num_threads(1)
