"""Launching Triton kernels. Importing this needs no Triton."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """One call of a kernel: positional arguments, and constants with `num_warps` and `num_stages` by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    options: dict[str, Any]


_recorded: list[Launch] | None = None


def launch(kernel, grid: tuple[int, ...], *arguments, **options) -> None:
    """Run `kernel` over `grid`; on meta tensors do nothing: their callers want allocations or launches listed."""
    options["enable_fp_fusion"] = True  # a*b + c in one rounding; Triton's default differs between versions
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, options))
    if device.type == "meta":
        return
    if device.type == "cpu":
        mend_interpreter()
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """List the launches made inside, by this process, on any device."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


@cache
def mend_interpreter() -> None:
    """Let a scalar of Triton's interpreter bound a loop: before 3.8 it is an array of one, which NumPy 2.4 refuses."""
    import triton
    from triton.runtime import interpreter

    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):
        return
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, *scope) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda scalar: int(scalar.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index
