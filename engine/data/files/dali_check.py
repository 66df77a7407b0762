"""Whether DALI decodes a file; separate from the loader, so that the scan's processes do not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from nvidia.dali import fn, pipeline_def, types

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def _single():
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return fn.decoders.image(encoded, output_type=types.RGB)


_asked: list[Pipeline] = []


def decoded_shape(encoded: bytes) -> tuple[int, int] | None:
    """Return the (height, width) that DALI decodes a whole file's bytes to on the CPU; None where DALI refuses."""
    if not _asked:
        _asked.append(_single())
    try:
        (images,) = _asked[0].run(encoded=[np.frombuffer(encoded, np.uint8)])
    except RuntimeError:
        _asked.clear()  # an error leaves a pipeline unusable
        return None
    return tuple(images.shape()[0][:2])
