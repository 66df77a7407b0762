"""Which reader carries out a split's work: by the backend, or by the store of decoded images."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.errors import UserError

if TYPE_CHECKING:
    import torch

    from polychrome.engine.data.stores.uniform import Resident
    from polychrome.engine.data.stores.whole import Pixels


BACKENDS = ("dali", "torch", "synthetic")


def reader(
    images: ImageSet,
    split: str,
    size: int,
    batch_size: int,
    backend: str,
    device: torch.device,
    seed: int = 0,
    workers: int = 1,
    pixels: Pixels | Resident | None = None,
):
    """Return what carries out `Work` on a split's images: `read(plan)` yields a `Decoded` each; see `create`."""
    chosen = images.splits[split]
    backend = getattr(pixels, "backend", None) or resolve(backend, images.stacks)
    if chosen.sizes is None and backend != "synthetic":
        raise ValueError(f"split {split!r} has no image sizes: pass the set through scan.scan and scan.apply first")
    if backend == "cached":
        from polychrome.engine.data.readers.whole import Reader

        return Reader(pixels, chosen.paths, size, device, workers)
    if backend == "resident":
        from polychrome.engine.data.readers.uniform import Reader

        return Reader(pixels, chosen, size, device, workers)
    if backend == "dali":
        from polychrome.engine.data.readers.dali import Reader

        return Reader(images.root, chosen.paths, size, batch_size, device, workers)
    if backend == "torch":
        from polychrome.engine.data.readers.pillow import Reader

        return Reader(images, chosen, size, device, workers)
    from polychrome.engine.data.readers.synthetic import Reader

    return Reader(images, len(chosen.paths), size, device, seed)


def resolve(backend: str, stacks: bool = False) -> str:
    """Return the backend that a name stands for: "auto" is dali where it is installed and can read the set, else torch.

    Raises UserError where there is no such backend, or none that reads stacks.
    """
    if backend not in (*BACKENDS, "auto"):
        raise UserError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    if backend not in ("auto", "dali"):
        return backend
    if stacks and backend == "dali":
        raise UserError("backend dali reads photos, not .npy files or TIFF files of several pages: use --backend torch")
    try:
        installed = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        installed = False
    if backend == "dali" and not installed:
        raise UserError("backend dali needs NVIDIA DALI: pip install nvidia-dali-cuda130, or use --backend torch")
    return "dali" if installed and not stacks else "torch"
