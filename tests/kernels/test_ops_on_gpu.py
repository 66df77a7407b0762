"""Every op on a CUDA device against the definition in float64: `pytest -m gpu`."""

import pytest
import torch

from polychrome import kernels
from tests.kernels.gpu import DEVICE, assert_near_exact, dtypes, layouts
from tests.kernels.oracle import outcome, randn

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("without_tf32")]
CASES = {
    "dynamic_conv2d": ([(6, 16, 14, 14), (4, 24, 8, 3, 3), (6, 4), (4, 24)], {"padding": 1, "groups": 2}),
    "dynamic_conv2d strided": ([(5, 3, 33, 31), (4, 8, 3, 7, 7), (5, 4)], {"padding": 3, "stride": 2}),
    "per_sample_conv2d": ([(6, 16, 9, 11), (6, 8, 16, 3, 3), (6, 8)], {"padding": "same", "dilation": 2}),
    "per_sample_conv2d pointwise": ([(4, 32, 7, 7), (4, 16, 32, 1, 1)], {}),
    "channel_stats": ([(6, 13, 14, 14)], {}),
    "spatial_gate": ([(6, 32, 14, 14), (6, 1, 14, 14)], {}),
    "spatial_gate of one image, odd": ([(1, 13, 9, 7), (1, 1, 9, 7)], {}),
    "spatial_attention": ([(6, 32, 14, 14), (1, 2, 7, 7), (1,)], {}),
    "channel_gate": ([(6, 32, 14, 14), (8, 32), (8,), (32, 8), (32,)], {}),
}


@dtypes
@layouts
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_near_the_exact_ones(case, dtype, layout):
    function = getattr(kernels, case.split()[0])
    shapes, options = CASES[case]
    arguments = [randn(*shape, seed=number, dtype=dtype) for number, shape in enumerate(shapes)]
    arguments[0] = arguments[0].to(memory_format=layout)
    assert_near_exact(function, arguments, **options)


def test_a_call_made_again_waits_for_what_its_stream_did_before():
    x, logits = torch.zeros(2, 16, 14, 14, device=DEVICE), randn(2, 1, 14, 14).to(DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for call in range(1, 5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # about 10 ms, in which another stream would read what x was
            x.fill_(call)
            y = kernels.spatial_gate(x, logits)
        stream.synchronize()
        torch.testing.assert_close(y, call * logits.sigmoid().expand_as(x))


@layouts
def test_compiled_attention_equals_eager(layout):
    x = randn(8, 16, 14, 14).to(DEVICE).to(memory_format=layout)
    weight = randn(1, 2, 7, 7, seed=1).to(DEVICE).to(memory_format=layout)
    compiled = torch.compile(kernels.spatial_attention, fullgraph=True)
    grad = randn(8, 16, 14, 14, seed=2).to(DEVICE)
    for one, other in zip(
        outcome(compiled, [x, weight], grad), outcome(kernels.spatial_attention, [x, weight], grad), strict=True
    ):
        torch.testing.assert_close(one, other)
