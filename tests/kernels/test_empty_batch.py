"""A batch of no sample, as a filter may leave it: an output of none, no kernel launched, and gradients of zeros."""

import pytest
import torch
from torch import Tensor

from polychrome.kernels import use_backend
from polychrome.kernels.launch import record_launches
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.op_calls import EXPERTS, SHAPE, function_arguments, public
from tests.kernels.oracle import as_leaf, randn

BY_TAP, UNMASKED = "dynamic_conv2d, mixed by tap", "channel_stats, without a mask"
FUNCTIONS = {function.__name__: function for function in public()}
FUNCTIONS |= {BY_TAP: FUNCTIONS["dynamic_conv2d"], UNMASKED: FUNCTIONS["channel_stats"]}
# The places of the arguments that all samples share.
SHARED = {"modulated_conv2d": (1,), "channel_gate": (1, 2, 3, 4), "spatial_attention": (1, 2)}
IN_KERNELS = torch.float32, torch.float16  # the interpreter computes bfloat16 wrongly


def is_run(name: str, dtype: torch.dtype, backend: str) -> bool:
    return backend != "triton" or (dtype in IN_KERNELS and "3d" not in name)


@grid(
    where=is_run,
    name=list(FUNCTIONS),
    dtype=[torch.float32, torch.float16, torch.bfloat16, torch.float64],
    backend={"auto": "auto", "reference": "reference", "triton": pytest.param("triton", marks=needs_interpreter)},
)
def test_it_has_an_empty_output_and_gradients_of_zeros_without_a_launch(name, dtype, backend):
    whole, options = function_arguments(FUNCTIONS[name].__name__, dtype)
    if name == BY_TAP:
        whole[2:] = randn(SHAPE[0], EXPERTS, 3, 3, dtype=dtype), None
    if name == UNMASKED:
        whole[1] = None
    shared = (1, 3) if name.startswith("dynamic") else SHARED.get(name, ())
    empty = [
        as_leaf(each[:0] if isinstance(each, Tensor) and place not in shared else each)
        for place, each in enumerate(whole)
    ]
    wanted = FUNCTIONS[name].reference(*whole, **options)
    with use_backend(backend), record_launches() as launches:
        y = FUNCTIONS[name](*empty, **options)
        leaves = [each for each in empty if isinstance(each, Tensor) and each.requires_grad]
        if leaves:
            y.sum().backward()
    assert (y.shape, y.dtype) == ((0, *wanted.shape[1:]), wanted.dtype)
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()
    assert not launches
