"""Benchmark of `augment`: the timed calls and the baselines.

A way (implementation) takes a call and returns a function that makes its batch at each call. Values that a way needs on
the host (crops, flips, indices) are there before it is timed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.ops import availability
from polychrome import kernels
from polychrome.kernels.augment import Parameters, Recipe, draw
from polychrome.kernels.augment.geometry import clamped
from polychrome.kernels.tensors import wide_dtype

# Sides in pixels of the resident images and of the output.
SIDE, SIZE = 256, 224
COUNTS = {"cuda": 1024, "cpu": 16}
BATCHES = {"cuda": (64, 512), "cpu": (8,)}
RECIPES = {
    "plain": Recipe(scale=(0.35, 1.0), flip=0.5),
    "whole": Recipe(
        scale=(0.35, 1.0),
        flip=0.5,
        degrees=15,
        brightness=0.2,
        contrast=0.2,
        gamma=0.2,
        grayscale=0.2,
        cutout=0.25,
        channels="subset",
    ),
}


class Call(NamedTuple):
    """The arguments of one call; images are uint8 [count, height, width, channels] and indices are distinct."""

    images: Tensor
    indices: Tensor
    drawn: Parameters
    mean: list[float]
    std: list[float]
    size: int
    dtype: torch.dtype

    @property
    def arguments(self) -> dict:
        """The arguments of `augment` apart from the images."""
        statistics = {"mean": self.mean, "std": self.std}
        return {"indices": self.indices, "size": self.size, "dtype": self.dtype, **statistics, **self.drawn._asdict()}

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.images.shape[3] if self.drawn.channels is None else self.drawn.channels.shape[1]

    @property
    def boxes(self) -> Tensor:
        """The crops clamped to the images, (top, left, height, width), int64 [batch, 4]."""
        return clamped(self.drawn.crops, len(self.indices), self.images)

    def samples(self, start: int, stop: int) -> "Call":
        """Return the call for a part of the batch."""
        rows = Parameters(*(None if value is None else value[start:stop] for value in self.drawn))
        return self._replace(indices=self.indices[start:stop], drawn=rows)

    def to(self, dtype: torch.dtype) -> "Call":
        """Return the call for an output in another dtype."""
        return self._replace(dtype=dtype)

    def forward_bytes(self) -> int:
        """Return the least bytes that the call moves.

        Every pixel inside a sample's crop has a weight above zero in some output pixel, because the output is nowhere
        coarser than its filter: height * width * channels bytes of each crop, clamped to the image, are read, once
        because the samples are of different images. Every output value is written, and the parameters are read, mean
        and std as float32. For the whole recipe this is an upper estimate: rotated samples leave the corners of the
        crop out, and pixels cut out need not be read.
        """
        channels = self.images.shape[3]
        read = int(self.boxes[:, 2:].prod(1).sum()) * channels
        written = len(self.indices) * self.size**2 * self.out_channels * self.dtype.itemsize
        parameters = sum(value.nbytes for value in (self.indices, *self.drawn) if value is not None)
        return read + written + parameters + 2 * 4 * channels


class Shape(NamedTuple):
    """A batch of SIDE x SIDE images augmented to SIZE x SIZE by one of RECIPES."""

    batch: int
    channels: int
    dtype: torch.dtype
    recipe: str = "plain"

    @property
    def name(self) -> str:
        """The name of this call among calls of its dtype."""
        return f"{self.batch}x{SIDE}x{SIDE}x{self.channels} to {SIZE}{'' if self.recipe == 'plain' else ' whole'}"

    @property
    def key(self) -> str:
        """The name of this call among all calls: dtype and layout of the output, and `name`."""
        return f"{str(self.dtype).removeprefix('torch.')} channels_last {self.name}"

    def call(self, device: str, seed: int = 0, blank: bool = False) -> Call:
        """Return a call with random bytes as resident images, random indices, and drawn parameters.

        `blank`: as many images as on a GPU, all zero, which takes neither time nor memory on the host.
        """
        generator = torch.Generator(device).manual_seed(seed)
        count = COUNTS["cuda" if blank else device]
        sizes = (count, SIDE, SIDE, self.channels)
        if blank:
            images = torch.zeros(sizes, dtype=torch.uint8, device=device)
        else:
            images = torch.randint(256, sizes, dtype=torch.uint8, device=device, generator=generator)
        indices = torch.randperm(count, device=device, generator=generator)[: self.batch]
        drawn = draw(RECIPES[self.recipe], indices, (SIDE, SIDE), seed, 0, (SIZE, SIZE), self.channels)
        mean = torch.linspace(0.4, 0.5, self.channels).tolist()
        std = torch.linspace(0.2, 0.25, self.channels).tolist()
        return Call(images, indices, drawn, mean, std, SIZE, self.dtype)


def shapes_on(device: str) -> list[Shape]:
    """Return the shapes to time on "cuda" or "cpu", the plain recipe first."""
    if device == "cuda":
        plain = [Shape(batch, channels, torch.bfloat16) for channels in (3, 13) for batch in BATCHES[device]]
        return [*plain, Shape(64, 3, torch.bfloat16, "whole")]
    kinds = ((3, torch.float32), (3, torch.bfloat16), (13, torch.float32))
    plain = [Shape(batch, *kind) for kind in kinds for batch in BATCHES[device]]
    return [*plain, Shape(8, 3, torch.float32, "whole")]


Forward = Callable[[], Tensor]
# Tensors of the output's size that the definition holds at once: pixels as stored, widened and weighted, the sum before
# and after, and room for smaller tensors.
EAGER_VALUES = 6
# The most worker processes, and the most seconds for a batch from the workers.
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

    DALI resizes to uint8; unlike the other ways, its filter reads the image beyond the crop's edge. DALI has no
    bfloat16: its float16 output is cast.
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
    """Run `torchvision`'s way in CPU processes; yield a function that returns their next batch on the device.

    The processes resize and flip, and send uint8, a quarter of float32's bytes; the device normalises. All batches are
    equal. The processes end with the context.
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
    """Return the number of worker processes on this machine."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def reason_to_skip(name: str, shape: Shape, call: Call) -> str | None:
    """Return why a baseline, or "workers", does not run `shape`; None if it does."""
    if name == "eager":
        return _lacks_memory(call)
    if shape.recipe != "plain":
        return "plain recipe only"
    return availability.reason_to_skip("torchvision" if name == "workers" else name, call.images.device.type)


class _Samples(Dataset):
    """The samples of a call, uint8 [channels, size, size], resized and flipped by torchvision when read."""

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
