"""What the tests on a CUDA device share: `pytest -m gpu`."""

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.oracle import TOLERANCES, exact_outcome, outcome, randn, rms_ratio

DEVICE = "cuda"
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda d: str(d).removeprefix("torch."))
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def on_gpu(arguments) -> list[Tensor | None]:
    """Return the arguments on the GPU, strides kept."""
    return [None if argument is None else argument.to(DEVICE) for argument in arguments]


def assert_near_exact(function, arguments, **options) -> None:
    """Assert that output and gradients on the GPU are within the tolerance of x's dtype; the oracle runs on the CPU.

    So are those of the same call made twice more: the third is made by `kernels.replay`.
    """
    exact = exact_outcome(function, arguments, **options)
    grad = randn(*exact[0].shape, seed=7, dtype=arguments[0].dtype)
    forward, backward = TOLERANCES[arguments[0].dtype]
    for call in range(3):
        got = outcome(function, on_gpu(arguments), grad.to(DEVICE), **options)
        for index, (one, other) in enumerate(zip(got, exact, strict=True)):
            assert one.device.type == DEVICE
            assert rms_ratio(one.cpu(), other) <= (backward if index else forward), f"call {call}, output {index}"


def assert_graph_replays(function, arguments, **options) -> None:
    """Assert that a CUDA graph of forward and backward, replayed with another x, gives what new launches give."""
    torch.use_deterministic_algorithms(False)  # filling with NaN is not captured
    leaves = [argument.requires_grad_() for argument in on_gpu(arguments)]

    def step():
        y = function(*leaves, **options)
        return y, *torch.autograd.grad(y.square().sum(), leaves)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].copy_(randn(*leaves[0].shape, seed=9))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, expected)


def assert_compiled_trains(layer: nn.Module, mode: str, autocast: bool = False, **tolerance) -> None:
    """Assert that a layer of 16 channels gives eager's numbers when compiled in `mode`, also at another batch size.

    With `autocast` both run in bfloat16; `tolerance` (rtol, atol) is that of the parameters' gradients.
    """
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    layer = layer.to(DEVICE).to(memory_format=torch.channels_last)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for batch in (8, 8, 5):
        x = randn(batch, 16, 14, 14, seed=batch).to(DEVICE).to(memory_format=torch.channels_last)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            y = compiled(x)
            y.float().square().mean().backward()
            gradients = [p.grad.clone() for p in layer.parameters()]
            layer.zero_grad()
            expected = layer(x)
            expected.float().square().mean().backward()
        torch.testing.assert_close(y, expected)
        for got, parameter in zip(gradients, layer.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, **tolerance)
        layer.zero_grad()
