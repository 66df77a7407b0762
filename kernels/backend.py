"""Which implementation the public functions call."""

from collections.abc import Callable

import torch

BACKENDS = ("auto", "triton", "reference")

_current = "auto"


class use_backend:
    """Context manager that picks the implementation of every op called inside it.

    `auto` calls the registered op (`torch.ops.polychrome.*`), `reference` calls the plain PyTorch definition, which
    also has second derivatives and works under `torch.func`, and `triton` insists on a Triton kernel. The choice holds
    for the whole process, not per thread, and is read when the function is called (or traced by torch.compile), not
    when gradients are computed.

    Raises:
        ValueError: `name` is not one of the three.
    """

    def __init__(self, name: str):
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
        self.name = name
        self.previous: list[str] = []

    def __enter__(self):
        global _current
        self.previous.append(_current)
        _current = self.name
        return self

    def __exit__(self, *_):
        global _current
        _current = self.previous.pop()


def current_backend() -> str:
    """Return the name of the backend in force."""
    return _current


def calls_reference(op: str) -> bool:
    """Return whether `op` is to run its plain definition; raise RuntimeError where its backend has no kernel for it."""
    if _current == "triton":
        raise RuntimeError(
            f"{op} has no Triton kernel in this version; use use_backend('auto') or use_backend('reference')"
        )
    return _current == "reference"


def call_reference(definition: Callable, x: torch.Tensor, *arguments):
    """Return `definition(x, *arguments)` with autocast off: the caller has cast what autocast would."""
    if not torch.is_autocast_enabled(x.device.type):
        return definition(x, *arguments)
    with torch.autocast(x.device.type, enabled=False):
        return definition(x, *arguments)
