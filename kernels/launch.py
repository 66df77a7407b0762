"""Launching Triton kernels. Importing this needs no Triton."""

import sys
import threading
from collections.abc import Callable, Iterator
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

    @property
    def device(self) -> torch.device:
        """Where the kernel's tensors are."""
        return next(argument.device for argument in self.arguments if isinstance(argument, Tensor))

    def passed(self, compiled) -> tuple[tuple[int, ...], tuple]:
        """Return what `compiled.run` takes before the stream and after it, without hooks, to make this launch."""
        constants = (self.options[name] for name in self.kernel.arg_names[len(self.arguments) :])
        after = (compiled.function, compiled.packed_metadata, None, None, None, *self.arguments, *constants)
        return (*self.grid, 1, 1)[:3], after


# Called with a launch and the kernel that it was compiled to, None in the interpreter.
Listener = Callable[[Launch, Any], None]


class _OfThread(threading.local):
    listener: Listener | None = None


_of_thread = _OfThread()
_recorded: list[Launch] | None = None


def launch(kernel, grid: tuple[int, ...], *arguments, **options) -> None:
    """Run `kernel` over `grid`; on meta tensors do nothing: their callers want allocations or launches listed."""
    options["enable_fp_fusion"] = True  # a*b + c in one rounding; Triton's default differs between versions
    made = Launch(kernel, grid, arguments, options)
    if _recorded is not None:
        _recorded.append(made)
    if made.device.type == "meta":
        return
    if made.device.type == "cpu":
        mend_interpreter()
    if _of_thread.listener is not None:
        with torch._C._DisableTorchDispatch():  # the interpreter calls torch too
            compiled = kernel[grid](*arguments, **options)
        _of_thread.listener(made, compiled)
    else:
        kernel[grid](*arguments, **options)


def cdiv(size: int, block: int) -> int:
    """Return how many blocks cover `size`; Triton's own function of this name takes 3 us outside a kernel."""
    return -(-size // block)


def next_power_of_2(size: int) -> int:
    """Return the smallest power of 2 that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()


def current_stream() -> Callable[[int], int]:
    """Return Triton's function from a device's number to the handle of its current stream."""
    from triton.runtime import driver

    return driver.active.get_current_stream


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """List the launches made inside, by this process, on any device."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call `listener` after every launch that this thread makes inside."""
    before, _of_thread.listener = _of_thread.listener, listener
    try:
        yield
    finally:
        _of_thread.listener = before


def is_watched() -> bool:
    """Return whether launches are listed by `record_launches`, or Triton has hooks or settings that look into them.

    Hooks of single kernels (`add_pre_run_hook`) are not looked for.
    """
    if _recorded is not None:
        return True
    knobs = sys.modules.get("triton.knobs")
    if knobs is None:
        return False
    runtime = knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return True
    inspects = getattr(runtime, "add_stages_inspection_hook", None) is not None
    return bool(runtime.debug or inspects or getattr(knobs.compilation, "instrumentation_mode", ""))


@cache
def mend_interpreter() -> None:
    """Mend two faults of Triton's interpreter that kernels meet.

    Before 3.8 a scalar cannot bound a loop: it is an array of one, which NumPy 2.4 refuses. And a comparison of scalars
    comes out of a broadcast as whole numbers, of the type of what was compared: from 3.9 on no load takes such a mask.
    """
    import triton
    from triton import language
    from triton.runtime import interpreter

    patch, splat = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_splat
    if splat.__module__ == __name__:
        return

    def patch_with_index(tensor, *scope) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda scalar: int(scalar.handle.data.item())

    def splat_as_compared(builder, *arguments):
        handle = splat(builder, *arguments)
        if arguments[-1].data.dtype == bool:
            handle = interpreter.TensorHandle(handle.data.astype(bool), language.int1)
        return handle

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        interpreter._patch_lang_tensor = patch_with_index
    interpreter.InterpreterBuilder.create_splat = splat_as_compared
