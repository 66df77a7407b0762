"""Every op on a CUDA device against the definition in float64: `pytest -m gpu`."""

import pytest
import torch

import kernels
from tests.kernels.oracle import TOLERANCES, exact_outcome, outcome, randn, rms_ratio

DEVICE = "cuda"

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


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch):
    """float32 means float32 here, also where torch would let a convolution use TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_near_the_exact_ones(case, dtype, layout):
    function = getattr(kernels, case.split()[0])
    shapes, options = CASES[case]
    arguments = [randn(*shape, seed=number, dtype=dtype) for number, shape in enumerate(shapes)]
    arguments[0] = arguments[0].to(memory_format=layout)
    with torch.no_grad():
        grad = randn(*function.reference(*arguments, **options).shape, seed=7, dtype=dtype)
    exact = exact_outcome(function, arguments, grad.double(), **options)
    got = outcome(function, [argument.to(DEVICE) for argument in arguments], grad.to(DEVICE), **options)
    forward, backward = TOLERANCES[dtype]
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert one.device.type == DEVICE
        assert rms_ratio(one.cpu(), other) <= (backward if index else forward), f"output {index}"


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_compiled_attention_equals_eager(layout):
    x = randn(8, 16, 14, 14).to(DEVICE).to(memory_format=layout)
    weight = randn(1, 2, 7, 7, seed=1).to(DEVICE).to(memory_format=layout)
    compiled = torch.compile(kernels.spatial_attention, fullgraph=True)
    grad = randn(8, 16, 14, 14, seed=2).to(DEVICE)
    for one, other in zip(
        outcome(compiled, [x, weight], grad), outcome(kernels.spatial_attention, [x, weight], grad), strict=True
    ):
        torch.testing.assert_close(one, other)
