"""The ways a batch is augmented today; each takes a call and returns what makes its batch, called again and again.

What a way wants on the host (crops as numbers, flips, places) is there before it is timed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.baselines import availability
from bench.shapes.augment import Call, Shape
from polychrome import kernels
from polychrome.kernels.tensors import wide_dtype

Forward = Callable[[], Tensor]
# Values as large as the output that the definition holds at once: pixels as they are, widened and weighted, the sum
# before and after, and room for its smaller tensors.
EAGER_VALUES = 6
# Processes at most, whatever the machine has, and seconds that a batch of theirs may take.
MOST_WORKERS, PATIENCE = 16, 60


def ours(call: Call) -> Forward:
    """Call this project's op."""
    return partial(kernels.augment, call.images, **call.arguments)


def eager(call: Call) -> Forward:
    """The definition: a gather of the whole batch for every tap of the filter."""
    return partial(kernels.augment.reference, call.images, **call.arguments)


def torchvision(call: Call) -> Forward:
    """torchvision's functions on the device, sample by sample up to the flip, then on the batch."""
    samples = _Samples(call)
    return lambda: _normalised(torch.stack([samples[place] for place in range(len(samples))]), call)


def dali(call: Call) -> Forward:
    """DALI's operators on a batch gathered by torch, one run a call, nothing prefetched.

    DALI resizes to uint8; its filter reaches over the edge of the crop into the image, which no other way does. It has
    no bfloat16: float16 is asked for and cast.
    """
    import numpy as np

    on_gpu = call.images.is_cuda
    pipeline = _dali_pipeline(call)
    box = call.boxes.cpu().numpy().astype(np.float32)
    flips = call.drawn.flips.cpu().numpy().astype(np.int32)
    host = {"start": box[:, :2].copy(), "end": box[:, :2] + box[:, 2:], "mirror": flips}

    def forward() -> Tensor:
        images = call.images[call.indices]
        pipeline.feed_input("images", images if on_gpu else images.numpy())
        for name, values in host.items():
            pipeline.feed_input(name, values)
        (batch,) = pipeline.run(torch.cuda.current_stream()) if on_gpu else pipeline.run()
        return torch.from_dlpack(batch.as_tensor()).to(call.dtype).permute(0, 3, 1, 2)

    return forward


BASELINES: dict[str, Callable[[Call], Forward]] = {"eager": eager, "torchvision": torchvision, "dali": dali}


@contextmanager
def worker_batches(call: Call, workers: int) -> Iterator[Forward]:
    """Start `torchvision`'s way on CPU processes; the function yielded returns their next batch, on the device.

    The processes resize and flip, and send uint8, a quarter of float32's bytes; the device normalises. Every batch is
    the same. The processes are closed on leaving.
    """
    loader = DataLoader(
        _Samples(call._replace(images=call.images.cpu())),
        batch_sampler=repeat(range(len(call.indices))),
        num_workers=workers,
        pin_memory=call.images.is_cuda,
        timeout=PATIENCE,
    )
    batches = iter(loader)
    try:
        yield lambda: _normalised(next(batches).to(call.images.device, non_blocking=True), call)
    finally:
        batches._shutdown_workers()  # torch does so too, but only when nothing refers to the iterator any more


def worker_count() -> int:
    """Return how many processes the machine is given to feed."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def reason_to_skip(name: str, shape: Shape, call: Call) -> str | None:
    """Return why a baseline, or "workers", does not run `shape`; None if it does."""
    if name == "eager":
        return _lacks_memory(call)
    if shape.recipe != "plain":
        return "plain recipe only"
    return availability.reason_to_skip("torchvision" if name == "workers" else name, call.images.device.type)


class _Samples(Dataset):
    """The samples of a call, uint8 [channels, size, size], resized and flipped by torchvision when asked for."""

    def __init__(self, call: Call):
        self._images, self._size = call.images, [call.size, call.size]
        self._rows = list(zip(call.indices.tolist(), call.boxes.tolist(), call.drawn.flips.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Tensor:
        from torchvision.transforms.v2 import functional

        index, box, flip = self._rows[place]
        image = functional.resized_crop(self._images[index].permute(2, 0, 1), *box, self._size, antialias=True)
        return functional.horizontal_flip(image) if flip else image


def _normalised(batch: Tensor, call: Call) -> Tensor:
    from torchvision.transforms.v2 import functional

    values = functional.to_dtype(batch, call.dtype, scale=True)
    normalised = functional.normalize(values, call.mean, call.std, inplace=True)
    return normalised.contiguous(memory_format=torch.channels_last)


def _dali_pipeline(call: Call):
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = call.images.is_cuda

    @pipeline_def(
        batch_size=len(call.indices),
        num_threads=worker_count(),
        device_id=call.images.device.index if on_gpu else None,
        prefetch_queue_depth=1,
    )
    def pipeline():
        images = fn.external_source(name="images", layout="HWC", device="gpu" if on_gpu else "cpu")
        start, end = (fn.external_source(name=name, ndim=1) for name in ("start", "end"))
        resized = fn.resize(
            images,
            roi_start=start,
            roi_end=end,
            size=(call.size, call.size),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        return fn.crop_mirror_normalize(
            resized,
            mirror=fn.external_source(name="mirror", ndim=0),
            mean=[255 * value for value in call.mean],
            std=[255 * value for value in call.std],
            dtype=types.FLOAT if call.dtype == torch.float32 else types.FLOAT16,
            output_layout="HWC",
        )

    built = pipeline()
    built.build()
    return built


def _lacks_memory(call: Call) -> str | None:
    if not call.images.is_cuda:
        return None
    values = len(call.indices) * call.size**2 * call.images.shape[3]
    wanted, (free, _) = EAGER_VALUES * wide_dtype(call.dtype).itemsize * values, torch.cuda.mem_get_info()
    return f"needs {wanted / 1e9:.0f} GB of memory" if wanted > free else None
