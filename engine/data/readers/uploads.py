"""Copies of batches to the device that overlap with its computation."""

from __future__ import annotations

import torch
from torch import Tensor


class Uploads:
    """Copies from pinned memory on a CUDA stream of their own; on a CPU there is nothing to copy."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def pinned(self) -> bool:
        """Whether data to be copied should be in pinned memory."""
        return self._stream is not None

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` on the device; the stream in use there waits for the copy, the host does not."""
        if self._stream is None:
            return values
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            copy = values.to(self.device, non_blocking=True)
        current.wait_stream(self._stream)
        copy.record_stream(current)  # or the memory could be given away while a copy still reads it
        return copy
