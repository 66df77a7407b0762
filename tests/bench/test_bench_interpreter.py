"""Triton's interpreter made quicker: types and broadcasts are what Triton makes itself."""

from itertools import product

import pytest

from tests.kernels.interpreter import needs_interpreter

pytest.importorskip("triton")

import numpy as np
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

from bench.stand_in.interpreter import quicken

pytestmark = needs_interpreter

DTYPES = (tl.int1, tl.int32, tl.uint32, tl.float16, tl.float32, tl.pointer_type(tl.float16), tl.pointer_type(tl.int32))
SHAPES = ([1], [8], [1, 8], [8, 1], [8, 8], [4, 2, 1])


@pytest.fixture(autouse=True)
def quickened():
    quicken(interpreter)


def own(initialise, kind, *given):
    """Return what Triton itself makes."""
    made = object.__new__(kind)
    initialise.__wrapped__(made, *given)
    return made


def held(made):
    """Return the attributes of a type or a tensor, constants as their values."""

    def plain(value):
        return list(map(plain, value)) if isinstance(value, core.tuple) else getattr(value, "value", value)

    return {name: plain(value) for name, value in vars(made).items() if name not in ("handle", "_typed", "type")}


@pytest.mark.parametrize("again", [False, True])
def test_a_type_holds_what_triton_gives_it_when_it_is_made_first_and_again(again):
    for dtype, shape in product(DTYPES, SHAPES):
        for sides in (shape, [core.constexpr(side) for side in shape], core.tuple(shape)):
            quick = core.block_type(dtype, sides)
            plain = own(core.block_type.__init__, core.block_type, dtype, sides)
            assert held(quick) == held(plain)
            assert quick == plain
            assert quick.element_ty == dtype


def test_types_of_other_dtypes_and_shapes_differ():
    made = [core.block_type(dtype, shape) for dtype, shape in product(DTYPES, SHAPES)]
    assert [[one == other for other in made] for one in made] == np.eye(len(made)).tolist()


@pytest.mark.parametrize(
    ("shape", "reason"), [([3], "power of 2"), ([2, 12], "power of 2"), ([2**21], "exceeds")], ids=str
)
def test_shapes_that_triton_refuses_are_refused_again(shape, reason):
    for _ in range(2):
        with pytest.raises(ValueError, match=reason):
            core.block_type(tl.float32, shape)


def test_a_tensor_holds_what_triton_gives_it():
    for type_ in (*DTYPES, *(core.block_type(dtype, shape) for dtype, shape in product(DTYPES, SHAPES))):
        for _ in range(2):
            quick, plain = core.tensor("data", type_), own(core.tensor.__init__, core.tensor, "data", type_)
            assert held(quick) == held(plain)
            assert (quick.handle, quick.type) == (plain.handle, plain.type)


def test_tensors_are_broadcast_as_by_triton():
    def filled(dtype, shape):
        data = np.arange(np.prod(shape, dtype=int), dtype=np.float16).reshape(shape or [1])
        return core.tensor(interpreter.TensorHandle(data, dtype), core.block_type(dtype, shape) if shape else dtype)

    semantic = interpreter.interpreter_semantic
    plain = type(semantic).broadcast_impl_value.__wrapped__
    compared = 0
    for one, other in product(([], *SHAPES[:5]), repeat=2):
        for dtype in (tl.float32, tl.float16):
            pair = filled(tl.float32, one), filled(dtype, other)
            for quick, expected in zip(semantic.broadcast_impl_value(*pair), plain(semantic, *pair), strict=True):
                assert quick.type == expected.type
                assert np.array_equal(quick.handle.data, expected.handle.data)
                compared += 1
    assert compared == 2 * 2 * 36
