"""Results of the stand-in driver's launches, by Triton's interpreter on the tensors of the launch."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from bench.stand_in.interpreter import quicken

# Triton and our kernels, imported again under TRITON_INTERPRET=1, which `triton.jit` reads when it decorates.
_interpreted: dict[str, object] = {}


def interpret(kernel, grid: tuple[int, ...], arguments: tuple) -> None:
    """Run a JIT kernel in Triton's interpreter; bfloat16 as float32, as the interpreter gets it wrong."""
    wide = [_widened(argument) for argument in arguments]
    with inside(kernel.fn.__module__):
        function = getattr(sys.modules[kernel.fn.__module__], kernel.fn.__name__)
        function[grid](*wide)
    for given, used in zip(arguments, wide, strict=True):
        # Only written tensors: another argument may be a view of the same memory.
        if used is not given and not torch.equal(used, given.float()):
            given.copy_(used)


def _widened(argument):
    return argument.float() if isinstance(argument, Tensor) and argument.dtype == torch.bfloat16 else argument


@contextmanager
def inside(module: str) -> Iterator[None]:
    """Make imports find the interpreted modules, `module` among them."""
    compiled = _take_out()
    sys.modules.update(_interpreted)
    try:
        if module not in _interpreted:
            os.environ["TRITON_INTERPRET"] = "1"
            importlib.import_module(module)
            _prepare()
        yield
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        _interpreted.update(_take_out())
        sys.modules.update(compiled)
        for name, each in compiled.items():  # importing a module sets an attribute of its package
            package, _, short = name.rpartition(".")
            if package in sys.modules and package not in compiled:
                setattr(sys.modules[package], short, each)


def _take_out() -> dict[str, object]:
    """Remove Triton's and our kernels' modules from `sys.modules`, and return them."""
    return {name: sys.modules.pop(name) for name, each in list(sys.modules.items()) if _is_of_triton(name, each)}


def _is_of_triton(name: str, module) -> bool:
    package, *rest = name.removeprefix("polychrome.").split(".")
    if package == "kernels":
        return "triton" in rest or getattr(vars(module).get("triton"), "__name__", None) == "triton"
    return package == "triton" and rest[:1] != ["_C"]


def _prepare() -> None:
    """Make the interpreter work in Triton before 3.8, and fast, without its check of every sum for overflow."""
    from triton.runtime import interpreter

    from polychrome.kernels.launch import mend_interpreter

    mend_interpreter.__wrapped__()
    quicken(interpreter)
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
