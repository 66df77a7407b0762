"""The choice of the reader that makes a split's batches: a backend's, of files, or the reader of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from polychrome.engine.data.batches import BatchRequest, DecodedBatch, Reading
from polychrome.engine.data.files import dali_check
from polychrome.engine.data.readers.pillow import PillowReader
from polychrome.engine.data.readers.synthetic import SyntheticReader
from polychrome.engine.data.readers.uniform import UniformReader
from polychrome.engine.data.readers.whole import WholeReader
from polychrome.engine.data.stores.uniform import UniformImages
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import UserError


class Reader(Protocol):
    """Decodes the batches that a loader requests, one epoch at a time."""

    def read(self, requests: Sequence[BatchRequest]) -> Iterator[DecodedBatch]:
        """Yield the images of each request, on the reader's device."""

    def close(self) -> None:
        """Free threads, processes and memory."""


def _dali(reading: Reading) -> Reader:
    from polychrome.engine.data.readers.dali import DaliReader  # DALI may not be installed

    return DaliReader(reading)


BACKENDS: dict[str, Callable[[Reading], Reader]] = {"dali": _dali, "torch": PillowReader, "synthetic": SyntheticReader}
Store = WholeImages | UniformImages


def reader(reading: Reading, backend: str = "auto", store: Store | None = None) -> Reader:
    """Return the reader of a split: of the images in `store`, where given, else of its files by `backend`.

    Raises:
        UserError: the backend is not there or cannot read the set.
        ValueError: the set has no sizes (see `engine.data.sets.scan`), which only the synthetic backend can do without.
    """
    if store is None:
        backend = resolve(backend, reading.images.stacks)
    if reading.chosen.sizes is None and (store is not None or backend != "synthetic"):
        raise ValueError(
            f"split {reading.split!r} has no image sizes: pass the set through scan.scan and scan.apply first"
        )
    if isinstance(store, WholeImages):
        return WholeReader(reading, store)
    return BACKENDS[backend](reading) if store is None else UniformReader(reading, store)


def resolve(backend: str, stacks: bool = False) -> str:
    """Return the backend that a name stands for: "auto" is dali where it is installed and can read the set, else torch.

    Raises UserError where there is no such backend, or none that reads stacks.
    """
    if backend not in (*BACKENDS, "auto"):
        raise UserError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    if backend not in ("auto", "dali"):
        return backend
    if stacks and backend == "dali":
        raise UserError("backend dali reads photos of 8 bits, not measured values: use --backend torch")
    installed = dali_check.is_installed()
    if backend == "dali" and not installed:
        raise UserError("backend dali needs NVIDIA DALI: pip install nvidia-dali-cuda130, or use --backend torch")
    return "dali" if installed and not stacks else "torch"
