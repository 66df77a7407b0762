"""Loading with NVIDIA DALI: threads that read files and decode only the crop."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from polychrome.engine import console
from polychrome.engine.data.batches import BatchRequest, DecodedBatch, Reading, Streamed
from polychrome.engine.data.files import decode, shards
from polychrome.engine.data.readers import resizing
from polychrome.engine.data.readers.resizing import Filler, Filling, empty, one_ahead, resize
from polychrome.engine.errors import one_line

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

PREFETCH = 2
READ_AHEAD, READERS = 2, 8  # batches and threads, of files in tars
FAILURES = 8  # batches in a row that DALI may fail at though their files are whole
# Of each encoding the photos that are decoded by Pillow too, the side that they are resized to, the largest mean
# difference of a byte (an H200 differed by 0.2, and by 80 and more where it took a rotation for another), and the least
# deviation within a photo, without which a rotation is not seen.
EXAMPLES, EXAMPLE, LIMIT, DEVIATION = 4, 64, 2.0, 5.0
_ONCE = {"batch_size": 1, "num_threads": 1, "prefetch_queue_depth": 1}

Inputs = list[list[np.ndarray]]
_agrees: dict[tuple[str, str], bool] = {}  # by device and encoding


class DaliReader:
    """Decoded, cropped and resized batches of a split's files.

    On CUDA the whole pipeline is DALI's. On the CPU, DALI decodes and torch resizes: its uint8 kernels are
    three times as fast as DALI's there, and the two backends then agree to the bit. A file that DALI cannot decode ends
    its pipeline: a new pipeline starts with the next batch, and Pillow decodes the intact files of the current batch.
    Files that Pillow cannot read either are only given to Pillow from then on. On CUDA, whose decoders are others, a
    photo of each encoding is decoded both ways first: files of an encoding that comes out otherwise go to Pillow, as do
    the photos that the scan saw come out otherwise.
    """

    def __init__(self, reading: Reading):
        root, paths = reading.images.root, reading.chosen.paths
        self.size, self.device, self._root, self._paths = reading.size, reading.device, root, paths
        self._in_tars = any(shards.SUFFIX + "/" in path for path in paths)
        self._files = [] if self._in_tars else [np.frombuffer(os.fsencode(root / path), np.uint8) for path in paths]
        self._readers = ThreadPoolExecutor(READERS, "read") if self._in_tars else None
        self._threads = max(1, reading.workers)
        self._options = {
            "batch_size": reading.batch_size,
            "num_threads": self._threads,
            "prefetch_queue_depth": PREFETCH,
        }
        self._pipeline = self._built()
        self._inputs: Iterator[Inputs] = iter(())
        self._fed: deque[np.ndarray] = deque()  # of the batches in the pipeline, the positions that it is given
        self._unreadable: set[int] = set()
        self._by_hand = frozenset(i for i, path in enumerate(paths) if path in reading.images.by_pillow)
        if self.device.type == "cuda":
            self._by_hand |= decoded_otherwise(reading)
        self._failures = 0

    def read(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        """Yield uint8 [batch, 3, size, size] on the device, channels last in memory, for each request.

        Only one iterator may be in use at a time; closing the iterator early drops prefetched batches.
        """
        try:
            yield from self._on_cuda(requests) if self.device.type == "cuda" else self._on_cpu(requests)
        finally:
            self._empty()

    def close(self) -> None:
        """Free the pipeline and the threads."""
        self._pipeline = None
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
        if "_filler" in vars(self):
            self._filler.close()

    @cached_property
    def _filler(self) -> Filler:
        return Filler(-(-self._threads // 3))

    def _built(self) -> Pipeline:
        def source() -> Inputs:
            return next(self._inputs)  # StopIteration ends DALI's epoch

        if self.device.type == "cuda":
            on = {"device": "mixed", "device_id": _index(self.device)}
            pipeline = resized(source, self.size, encoded=self._in_tars, **on, **self._options)
        else:
            pipeline = cropped(source, self._in_tars, device_id=None, **self._options)
        pipeline.build()
        return pipeline

    def _start(self, requests: Sequence[BatchRequest]) -> None:
        size = next((request.size for request in requests if request.size), self.size)
        if size != self.size:
            self.size = size
            if self.device.type == "cuda":  # there the pipeline resizes
                self._pipeline = None
        if self._pipeline is None:
            self._pipeline = self._built()
        self._inputs = self._feeds([request for request in requests if self._is_for_dali(request)])
        self._fed.clear()

    def _empty(self) -> None:
        """Leave the pipeline ready for the next epoch."""
        self._inputs = iter(())
        if self._pipeline is None:
            return
        try:
            while True:
                self._pipeline.run()
        except StopIteration:
            self._pipeline.reset()
        except RuntimeError:  # a fault in a batch that nobody waits for
            self._pipeline = None

    def _feeds(self, requests: Sequence[BatchRequest]) -> Iterator[Inputs]:
        parts = map(self._part, requests)
        for positions, part, files in _drawn_ahead(((*item, self._encoded(item[1])) for item in parts), READ_AHEAD):
            self._fed.append(positions)
            found = {index: file for future in files for index, file in future.result()} if self._in_tars else files
            yield feed(found, part)

    def _is_for_dali(self, request: BatchRequest) -> bool:
        return not self._by_hand.issuperset(request.indices.tolist())

    def _part(self, request: BatchRequest) -> tuple[np.ndarray, BatchRequest]:
        """Return the positions in a batch that DALI is to decode, if none unreadable files, and a request for these."""
        indices = request.indices.tolist()
        for left_out in (self._unreadable | self._by_hand, self._by_hand):
            positions = np.flatnonzero([index not in left_out for index in indices])
            if len(positions):
                break
        return positions, replace(
            request, indices=request.indices[positions], crops=request.crops[positions], flips=request.flips[positions]
        )

    def _encoded(self, request: BatchRequest) -> list:
        if not self._in_tars:
            return self._files
        return [
            self._readers.submit(self._bytes, part) for part in np.array_split(request.indices, READERS) if len(part)
        ]

    def _bytes(self, indices: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Return the encoded files; an unreadable file becomes a single byte, which DALI cannot decode."""
        found = []
        for index in indices.tolist():
            try:
                content = shards.read_bytes(self._root / self._paths[index])
            except (OSError, ValueError):
                content = b""
            found.append((index, np.frombuffer(content or b"\0", np.uint8)))
        return found

    def _runs(self, requests: Sequence[BatchRequest]) -> Iterator[tuple[BatchRequest, np.ndarray, tuple | None]]:
        """Yield each request with the positions that DALI decoded, none where it failed, and its outputs."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        self._start(requests)
        for number, request in enumerate(requests):
            if not self._is_for_dali(request):
                yield request, np.zeros(0, np.int64), None
                continue
            try:
                outputs, positions = self._pipeline.run(stream), self._fed.popleft()
                self._failures = 0
            except RuntimeError:
                self._failures += 1
                if self._failures > FAILURES:
                    raise
                # The pipeline's later batches are lost with it: they are fed to the next pipeline.
                outputs, positions, self._pipeline = None, np.zeros(0, np.int64), None
            yield request, positions, outputs
            if outputs is None:
                self._start(requests[number + 1 :])

    def _on_cuda(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        for request, positions, outputs in self._runs(requests):
            faults: dict[int, str] = {}
            # A copy in torch's own memory: DALI's buffer would not know which streams still read it.
            images = torch.from_dlpack(outputs[0].as_tensor()).clone() if len(positions) else None
            if len(positions) < len(request.indices):
                images = self._completed(request, positions, images, faults)
            yield self._finished(request, images.permute(0, 3, 1, 2), faults)

    def _completed(
        self, request: BatchRequest, positions: np.ndarray, images: torch.Tensor | None, faults: dict[int, str]
    ) -> torch.Tensor:
        """Return a batch [batch, size, size, 3] of `images`, at these positions, and of the others by Pillow."""
        rest = np.setdiff1d(np.arange(len(request.indices)), positions)

        def image(i: int) -> torch.Tensor:
            return self._by_pillow(request, int(rest[i]), faults)

        filled = self._filler.start(empty(len(rest), self.size, 3, torch.uint8), image).finished()
        whole = torch.empty((len(request.indices), self.size, self.size, 3), dtype=torch.uint8, device=self.device)
        whole[torch.from_numpy(rest).to(self.device)] = filled.permute(0, 2, 3, 1).to(self.device)
        if images is not None:
            whole[torch.from_numpy(positions).to(self.device)] = images
        return whole

    def _on_cpu(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        begun: deque[tuple[BatchRequest, dict[int, str]]] = deque()

        def fillings() -> Iterator[Filling]:
            for request, positions, outputs in self._runs(requests):
                begun.append((request, {}))
                yield self._fill(request, positions, outputs, begun[-1][1])

        for images in one_ahead(fillings()):
            request, faults = begun.popleft()
            yield self._finished(request, images, faults)

    def _fill(
        self, request: BatchRequest, positions: np.ndarray, outputs: tuple | None, faults: dict[int, str]
    ) -> Filling:
        row_of = {position: row for row, position in enumerate(positions.tolist())}

        def image(i: int) -> torch.Tensor:
            if i not in row_of:
                return self._by_pillow(request, i, faults)
            return resize(torch.from_dlpack(outputs[0][row_of[i]]).permute(2, 0, 1), self.size, request.flips[i])

        return self._filler.start(empty(len(request.indices), self.size, 3, torch.uint8), image)

    def _by_pillow(self, request: BatchRequest, i: int, faults: dict[int, str]) -> torch.Tensor:
        path, (top, left, height, width) = self._paths[request.indices[i]], request.crops[i].tolist()
        try:
            image = np.require(decode.rgb(shards.opened(self._root / path)), requirements="W")
        except (OSError, ValueError) as error:
            faults[i] = f"can no longer be read: {one_line(error)}"
        else:
            if image.shape[0] >= top + height and image.shape[1] >= left + width:
                return resizing.cropped(image, request.crops[i], request.flips[i], self.size)
            faults[i] = f"has changed: wanted at least {[top + height, left + width]}, got {list(image.shape[:2])}"
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8)

    def _finished(self, request: BatchRequest, images: torch.Tensor, faults: dict[int, str]) -> DecodedBatch:
        if faults:
            self._failures = 0
        if faults or self._unreadable:
            bad = {int(request.indices[i]) for i in faults}
            self._unreadable = (self._unreadable - set(request.indices.tolist())) | bad
        return DecodedBatch(Streamed(images), faults)


def feed(files: Sequence[np.ndarray] | Mapping[int, np.ndarray], request: BatchRequest) -> Inputs:
    """Return a pipeline's inputs for one batch: paths or encoded files, crop anchors, crop shapes and flips."""
    crops = request.crops.astype(np.int32)
    flips = request.flips.astype(np.int32).reshape(-1, 1)
    return [[files[i] for i in request.indices], list(crops[:, :2]), list(crops[:, 2:]), list(flips)]


def decoded_otherwise(reading: Reading) -> set[int]:
    """Return the positions of the split's photos whose encoding DALI was not seen to decode as Pillow on this device.

    Of each encoding some photos are decoded both ways, and cropped and resized alike. An encoding is told once.
    """
    of_encoding: dict[tuple[str, str], list[int]] = {}
    for index, path in enumerate(reading.chosen.paths):
        if path in reading.images.by_pillow:
            continue
        key = str(reading.device), reading.images.encodings.get(path, "unknown encoding")
        of_encoding.setdefault(key, []).append(index)
    examples = [
        (key, index)
        for key, indices in of_encoding.items()
        if key not in _agrees
        for index in indices[:: -(-len(indices) // EXAMPLES)]
    ]
    differences = _differences(reading, [reading.chosen.paths[index] for _, index in examples])
    seen: dict[tuple[str, str], list[float]] = {key: [] for key, _ in examples}
    for (key, _), difference in zip(examples, differences, strict=True):
        seen[key] += [] if difference is None else [difference]
    for (device, how), found in seen.items():
        _agrees[device, how] = bool(found) and max(found) <= LIMIT
        if not _agrees[device, how]:
            console.say(f"photos left to Pillow, as DALI was not seen to decode them alike on {device}: {how}")
    return {index for key, indices in of_encoding.items() if not _agrees[key] for index in indices}


def _differences(reading: Reading, paths: Sequence[str]) -> Iterator[float | None]:
    """Yield for each photo the mean difference between an off-centre crop of it by DALI and by Pillow.

    Infinity where DALI cannot decode it; None where it tells nothing, being unreadable by now, or of one colour.
    """
    device, on_gpu = reading.device, reading.device.type == "cuda"
    stream = torch.cuda.current_stream(device) if on_gpu else None
    on = {"device": "mixed", "device_id": _index(device)} if on_gpu else {"device": "cpu", "device_id": None}
    for path in paths:
        try:
            encoded = shards.read_bytes(reading.images.root / path)
            whole = decode.rgb(io.BytesIO(encoded))
        except (OSError, ValueError):
            yield None
            continue
        height, width = whole.shape[:2]
        crop = np.array([height // 5, width // 7, -(-3 * height // 5), -(-3 * width // 5)])
        request = BatchRequest(np.zeros(1, np.int64), crop[None], np.zeros(1, bool))
        expected = resizing.cropped(whole, crop, False, EXAMPLE).float()
        if expected.std() < DEVIATION:
            yield None
            continue
        inputs = feed([np.frombuffer(encoded, np.uint8)], request)
        pipeline = resized([inputs], EXAMPLE, encoded=True, **on, **_ONCE)
        try:
            image = torch.from_dlpack(pipeline.run(stream)[0].as_tensor())[0].permute(2, 0, 1).cpu()
        except RuntimeError:
            yield float("inf")
            continue
        yield (image - expected).abs().mean().item()


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _drawn_ahead(items: Iterable, count: int) -> Iterator:
    """Yield the items, each drawn `count` items before it is yielded."""
    waiting = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _decoded(source, device: str, encoded: bool):
    files, start, shape, flip = fn.external_source(source, num_outputs=4)
    images = fn.decoders.image_slice(
        files if encoded else fn.io.file.read(files),
        start=start,
        shape=shape,
        axis_names="HW",
        device=device,
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,
    )
    return images, flip


@pipeline_def
def cropped(source, encoded: bool = False):
    """Return a pipeline of crops, uint8 [height, width, 3] each, on the CPU; `encoded`: of bytes, not of paths."""
    images, flip = _decoded(source, "cpu", encoded)
    return images, flip


@pipeline_def
def resized(source, size: int, device: str, encoded: bool = False):
    """Return a pipeline of resized and mirrored crops, uint8 [size, size, 3] each.

    `device` is "cpu" or "mixed"; `encoded` says that it is fed with files' bytes, not with their paths.
    """
    images, flip = _decoded(source, device, encoded)
    images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(images, horizontal=fn.reshape(flip, shape=[]))
