"""Ops take tensors as they lie: what is saved for a gradient may come back from a user's hook in another layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.layouts import backwards, with_gaps
from tests.kernels.op_calls import op_arguments, registered
from tests.kernels.oracle import outputs, rms_ratio


@grid(
    name=registered(),
    laid=[with_gaps, backwards],
    backend={"auto": "auto", "triton": pytest.param("triton", marks=needs_interpreter)},
)
def test_every_op_computes_the_same_of_every_layout_of_each_tensor(name: str, laid: Callable, backend: str):
    arguments = op_arguments(name, torch.float32, backend=backend)
    op = getattr(torch.ops.polychrome, name)
    wanted = outputs(op(*arguments))
    for place, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            got = outputs(op(*arguments[:place], laid(argument), *arguments[place + 1 :]))
            for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
                assert one.shape == other.shape
                assert not one.numel() or rms_ratio(one, other) < 1e-5, f"argument {place}, output {number}"
