"""Triton's interpreter without work that it repeats at every call."""

from functools import cache, wraps
from types import ModuleType

TYPED = "_typed"  # what a type gives to every tensor of it


def quicken(interpreter: ModuleType) -> None:
    """Make `triton.runtime.interpreter` look up builtins and dtypes once and describe each shape once.

    Left alone, it searches all of Triton's language at each call of a function and makes a table of all dtypes for each
    tensor, which takes a third of its time in kernels that call many small functions. Of the rest, half goes into
    types: each operation on tensors makes its result's type anew, an object for each side of its shape.
    """
    if interpreter._patch_builtin.__module__ == __name__:
        return
    core = interpreter.tl.core
    is_builtin, pointer, names = core.is_builtin, core.pointer_type, {}
    dtype_of = interpreter._get_np_dtype
    dtype_of_scalar = cache(dtype_of)

    def patch_builtins(package, builder, scope) -> None:
        if package not in names:
            names[package] = [name for name, _ in interpreter.inspect.getmembers(package, is_builtin)]
        if not is_builtin(getattr(package, names[package][0])):
            return  # by the function that calls this one, until it returns
        for name in names[package]:
            member = getattr(package, name)
            if is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    def numpy_dtype(dtype):
        scalar = dtype.scalar
        return dtype_of(scalar) if isinstance(scalar, pointer) else dtype_of_scalar(scalar)

    interpreter._patch_builtin, interpreter._get_np_dtype = patch_builtins, numpy_dtype
    _describe_shapes_once(core, interpreter.TritonSemantic)


def _describe_shapes_once(core: ModuleType, semantic: type) -> None:
    """Let types of one dtype and shape share what they hold, and tensors what they have of their type."""
    make_block, make_tensor, broadcast = core.block_type.__init__, core.tensor.__init__, semantic.broadcast_impl_value
    blocks = {}

    @wraps(make_block)
    def init_block(self, element_ty, shape) -> None:
        sides = [getattr(side, "value", side) for side in getattr(shape, "values", shape)]
        key = (type(element_ty), element_ty.name, type(shape), *sides)
        if key in blocks:
            vars(self).update(blocks[key])
        else:
            make_block(self, element_ty, shape)
            blocks[key] = vars(self)

    @wraps(make_tensor)
    def init_tensor(self, handle, type) -> None:
        typed = vars(type).get(TYPED)
        if typed is None:
            make_tensor(self, handle, type)
            setattr(type, TYPED, {name: value for name, value in vars(self).items() if name != "handle"})
        else:
            vars(self).update(typed)
            self.handle = handle

    @wraps(broadcast)
    def broadcast_unless_equal(self, left, right):
        shapes = left.type, right.type
        if all(each.is_block() for each in shapes) and list(shapes[0].shape) == list(shapes[1].shape):
            return left, right
        return broadcast(self, left, right)

    core.block_type.__init__, core.tensor.__init__ = init_block, init_tensor
    semantic.broadcast_impl_value = broadcast_unless_equal
