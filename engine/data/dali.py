"""Loading with NVIDIA DALI: threads that read files and decode only the crop."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from engine.data.resizing import Filler, Filling, empty, one_ahead, resize

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

    from engine.data.loader import Work

PREFETCH = 2


class Reader:
    """Decoded, cropped and resized batches of the files `root/paths`.

    On CUDA the whole pipeline is DALI's. On the CPU, DALI decodes and torchvision resizes: its uint8 kernels are
    three times as fast as DALI's there, and the two backends then agree to the bit.
    """

    def __init__(
        self, root: Path, paths: Sequence[str], size: int, batch_size: int, device: torch.device, workers: int
    ):
        self.size, self.device = size, device
        self._files = [np.frombuffer(os.fsencode(root / path), np.uint8) for path in paths]
        self._plan: Iterator[Work] = iter(())
        threads = max(1, workers)
        options = {"batch_size": batch_size, "num_threads": threads, "prefetch_queue_depth": PREFETCH}
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._pipeline = resized(self._next, size, "mixed", device_id=index, **options)
        else:
            self._pipeline = cropped(self._next, device_id=None, **options)
            self._filler = Filler(-(-threads // 3))
        self._pipeline.build()

    def read(self, plan: Sequence[Work]) -> Iterator[torch.Tensor]:
        """Yield uint8 [batch, 3, size, size] on the device, channels last in memory, for each piece of work.

        Only one iterator may be in use at a time; closing it early drops what was prefetched.
        """
        self._plan = iter(plan)
        try:
            yield from self._on_cuda() if self.device.type == "cuda" else self._on_cpu(plan)
        finally:
            self._plan = iter(())
            for _ in _runs(self._pipeline):
                pass
            self._pipeline.reset()

    def close(self) -> None:
        """Free the pipeline and its threads."""
        self._pipeline = None
        if self.device.type != "cuda":
            self._filler.close()

    def _next(self) -> list:
        return feed(self._files, next(self._plan))  # the plan's StopIteration ends DALI's epoch

    def _on_cuda(self) -> Iterator[torch.Tensor]:
        for (images,) in _runs(self._pipeline, torch.cuda.current_stream(self.device)):
            # A copy in torch's own memory: DALI's buffer would not know which streams still read it.
            yield torch.from_dlpack(images.as_tensor()).clone().permute(0, 3, 1, 2)

    def _on_cpu(self, plan: Sequence[Work]) -> Iterator[torch.Tensor]:
        runs = zip(plan, _runs(self._pipeline), strict=True)
        yield from one_ahead(self._resize(work, crops) for work, (crops, _) in runs)

    def _resize(self, work: Work, crops) -> Filling:
        def image(i: int) -> torch.Tensor:
            return resize(torch.from_dlpack(crops[i]).permute(2, 0, 1), self.size, work.flips[i])

        return self._filler.start(empty(len(work.indices), self.size, 3, torch.uint8), image)


def feed(files: Sequence[np.ndarray], work: Work) -> list[list[np.ndarray]]:
    """Return a pipeline's inputs for one batch: encoded paths, crop anchors, crop shapes and flips, one per image."""
    crops = work.crops.astype(np.int32)
    flips = work.flips.astype(np.int32).reshape(-1, 1)
    return [[files[i] for i in work.indices], list(crops[:, :2]), list(crops[:, 2:]), list(flips)]


def _runs(pipeline: Pipeline, stream: torch.cuda.Stream | None = None) -> Iterator[tuple]:
    while True:
        try:
            outputs = pipeline.run(stream)
        except StopIteration:
            return
        yield outputs


def _decoded(source, device: str):
    files, start, shape, flip = fn.external_source(source, num_outputs=4)
    images = fn.decoders.image_slice(
        fn.io.file.read(files),
        start=start,
        shape=shape,
        axis_names="HW",
        device=device,
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,
    )
    return images, flip


@pipeline_def
def cropped(source):
    """Return a pipeline of crops, uint8 [height, width, 3] each, on the CPU."""
    images, flip = _decoded(source, "cpu")
    return images, flip


@pipeline_def
def resized(source, size: int, device: str):
    """Return a pipeline of resized and mirrored crops, uint8 [size, size, 3] each; `device` is "cpu" or "mixed"."""
    images, flip = _decoded(source, device)
    images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(images, horizontal=fn.reshape(flip, shape=[]))
