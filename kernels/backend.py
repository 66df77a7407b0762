"""Which implementation the public functions call."""

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch.autograd import forward_ad

from polychrome.kernels.tensors import autocasts, in_layout, without_autocast

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = ("auto", "triton", "reference")

# The nested choices, the innermost last.
_choices: ContextVar[tuple[str, ...]] = ContextVar("choices of polychrome's backend", default=("auto",))
# What compiled code sees: Dynamo guards on a global, but before torch 2.14 on no context variable.
_latest = ("auto",)


class use_backend:
    """Context manager that picks the implementation of every op called inside it.

    `auto` does what the registered op (`torch.ops.polychrome.*`) does, `reference` is the plain PyTorch definition, and
    `triton` requires a Triton kernel: on CUDA tensors, or on CPU tensors where TRITON_INTERPRET=1 was set before Triton
    was imported. The choice is read when the function is called, not when gradients are computed, once or twice.

    The ops have first and second derivatives. Forward-mode derivatives, and gradients and `vmap` of `torch.func`, are
    the definition's: `auto` is `reference` there, and `triton` raises.

    The choice holds for the thread, or the asyncio task, that makes it (a `contextvars.ContextVar`): a thread that is
    started inside begins with `auto`, as does autograd's thread for a CUDA device, which runs checkpointed forwards
    again. Compiled code sees the choice that any thread made or ended last: a change recompiles the code, and where
    threads overlap it may see the choice of another thread. Inside a compiled function the choice can be made too.

    Raises:
        ValueError: `name` is not one of the three.
    """

    def __init__(self, name: str):
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
        self.name = name

    def __enter__(self):
        _set((*_in_force(), self.name))
        return self

    def __exit__(self, *_):
        _set(_in_force()[:-1])


def _in_force() -> tuple[str, ...]:
    return _latest if torch.compiler.is_compiling() else _choices.get()


def _set(choices: tuple[str, ...]) -> None:
    global _latest
    if not torch.compiler.is_compiling():
        _choices.set(choices)
    _latest = choices


def current_backend() -> str:
    """Return the name of the backend in force here: for the running thread or task, or for compiled code."""
    return _in_force()[-1]


def chosen_backend(op: str, x: torch.Tensor, dtype: torch.dtype | None = None, *, has_derivatives: bool = True) -> str:
    """Return the backend in force for a call of `op` on `x`, which computes in `dtype`, by default x's.

    Under forward-mode differentiation and the transforms of `torch.func` "auto" is "reference" for an op that has
    derivatives.

    Raises:
        RuntimeError: the backend is "triton", and no kernel can run on x's device; or the call is transformed in a way
            that only the definition can be.
        TypeError: the backend is "triton", and the kernels do not compute in this dtype.
    """
    backend = current_backend()
    if backend == "triton":
        _check_triton(op, x, dtype)
    if backend != "reference" and has_derivatives and (transform := _transform()):
        if backend == "triton":
            raise RuntimeError(f"{op} has no kernel for {transform}; call it under use_backend('auto')")
        return "reference"
    return backend


def runs_triton(x: torch.Tensor, backend: str, dtype: torch.dtype | None = None) -> bool:
    """Return whether an op called with `backend` runs its Triton kernels on `x`: `auto` does where it can on CUDA.

    The op computes in `dtype`, by default x's.
    """
    if backend == "auto":
        wanted = x.is_cuda and (dtype or x.dtype) in TRITON_DTYPES and triton_is_installed()
        return wanted and compiles_for(x.device.index or 0)
    return backend == "triton"


def constant_when_traced(function: Callable) -> Callable:
    """Mark `function` as torch.compiler.assume_constant_result does, which takes over a second to import Dynamo."""
    function._dynamo_marked_constant = True
    return function


@constant_when_traced
def _transform() -> str:
    """Return the transform in force that only the definitions follow, in words; empty for none.

    Dynamo, which has the same transforms active while it traces, guards on them.
    """
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives"
    if not torch._C._are_functorch_transforms_active():
        return ""
    kinds = {transform.key() for transform in torch._C._functorch.get_interpreter_stack()}
    known = torch._C._functorch.TransformType
    names = {known.Jvp: "forward-mode derivatives", known.Grad: "derivatives by torch.func", known.Vmap: "vmap"}
    return next((name for kind, name in names.items() if kind in kinds), "")


@constant_when_traced
def triton_is_installed() -> bool:
    """Return whether the Triton package can be imported."""
    return sys.modules.get("triton", True) is not None and find_spec("triton") is not None


@constant_when_traced
@cache
def compiles_for(index: int) -> bool:
    """Return whether Triton's kernels run on CUDA device `index`; warn, once, where they do not: the ops are eager."""
    if not torch.cuda.is_available():  # a tensor without data, such as FakeTensorMode makes, of a GPU that is elsewhere
        return True
    from polychrome.kernels.probe import obstacle

    found = obstacle(index)
    if found is not None:
        warnings.warn(f"polychrome runs as plain PyTorch on {torch.cuda.get_device_name(index)}: {found}", stacklevel=2)
    return found is None


@constant_when_traced
def is_interpreted() -> bool:
    """Return whether Triton was imported with TRITON_INTERPRET=1: its kernels then run on CPU tensors too."""
    import triton.language

    return type(triton.language.cdiv).__name__ == "InterpretedFunction"


def _check_triton(op: str, x: torch.Tensor, dtype: torch.dtype | None) -> None:
    if not triton_is_installed():
        raise RuntimeError(f"{op} cannot run on Triton, which is not installed; use use_backend('auto')")
    interpreted = is_interpreted()
    if x.device.type not in ("cuda", "meta") and not (interpreted and x.device.type == "cpu"):
        raise RuntimeError(
            f"{op} cannot run on Triton with x on {x.device}; move it to a CUDA device, or set TRITON_INTERPRET=1 "
            "before Triton is imported to run its kernels on CPU tensors"
        )
    wanted = [dtype for dtype in TRITON_DTYPES if not (interpreted and dtype == torch.bfloat16)]
    if (dtype or x.dtype) not in wanted:
        names = " or ".join(str(each).removeprefix("torch.") for each in wanted)
        where = "Triton's interpreter" if interpreted else "the Triton kernels"
        got = str(dtype or x.dtype).removeprefix("torch.")
        raise TypeError(f"{'dtype' if dtype else 'x'} must be {names} for {where}, got {got}")


def call_reference(definition: Callable, x: torch.Tensor, *arguments):
    """Return `definition(x, *arguments)`, not a view, with autocast off: the caller has cast the arguments.

    Of images the result is in x's memory format.
    """
    with without_autocast(x) if autocasts(x) else nullcontext():
        y = definition(x, *arguments)
    return owned(in_layout(x, y) if x.dim() == y.dim() == 4 else y)


def owned(y: torch.Tensor) -> torch.Tensor:
    """Return y, which has no other owner, as a tensor that is no view, so that it may be changed in place."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not y._is_view():
        return y
    return torch.ops.aten._unsafe_view(y, y.shape)
