"""Triton's interpreter without work that it repeats at every call."""

from functools import cache
from types import ModuleType


def quicken(interpreter: ModuleType) -> None:
    """Make `triton.runtime.interpreter` look up Triton's builtins and NumPy's dtypes once, not at every call.

    Left alone, it searches all of Triton's language at each call of a function and makes a table of all dtypes for each
    tensor, which takes a third of its time in kernels that call many small functions.
    """
    if interpreter._patch_builtin.__module__ == __name__:
        return
    is_builtin, pointer, names = interpreter.tl.core.is_builtin, interpreter.tl.pointer_type, {}
    dtype_of = interpreter._get_np_dtype
    dtype_of_scalar = cache(dtype_of)

    def patch_builtins(package, builder, scope) -> None:
        if package not in names:
            names[package] = [name for name, _ in interpreter.inspect.getmembers(package, is_builtin)]
        for name in names[package]:
            member = getattr(package, name)
            if is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    def numpy_dtype(dtype):
        scalar = dtype.scalar
        return dtype_of(scalar) if isinstance(scalar, pointer) else dtype_of_scalar(scalar)

    interpreter._patch_builtin, interpreter._get_np_dtype = patch_builtins, numpy_dtype
