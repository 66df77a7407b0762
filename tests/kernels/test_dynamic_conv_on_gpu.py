"""The convolutions' Triton kernels on a CUDA device: `pytest -m gpu`."""

import pytest
import torch

from kernels import dynamic_conv2d, explain, per_sample_conv2d
from kernels.dynamic_conv import configs
from kernels.dynamic_conv.plan import plan
from kernels.modules import DynamicConv2d
from tests.kernels.conv_cases import ARGUMENTS, CASES, WIDE_CASES, wide_arguments
from tests.kernels.oracle import TOLERANCES, exact_outcome, outcome, randn, rms_ratio

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
both = pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__name__)
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(autouse=True)
def poisoned_and_without_tf32(monkeypatch):
    """float32 means float32, and new memory is NaN until it is written."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_near_exact(function, arguments, options, dtype):
    with torch.no_grad():
        grad = randn(*function.reference(*arguments, **options).shape, seed=7, dtype=dtype)
    exact = exact_outcome(function, arguments, grad.double(), **options)
    moved = [None if argument is None else argument.to(DEVICE) for argument in arguments]
    got = outcome(function, moved, grad.to(DEVICE), **options)
    forward, backward = TOLERANCES[dtype]
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert rms_ratio(one.cpu(), other) <= (backward if index else forward), f"output {index}"


@dtypes
@pytest.mark.parametrize("case", CASES)
@both
def test_output_and_gradients_are_near_the_exact_ones(function, case, dtype):
    arguments, options = ARGUMENTS[function](case, dtype)
    assert explain(function, *(a.to(DEVICE) for a in arguments), **options).implementation == "triton"
    assert_near_exact(function, arguments, options, dtype)


@dtypes
@pytest.mark.parametrize("regime", ["aggregate", "stacked"])
@pytest.mark.parametrize("case", WIDE_CASES)
def test_every_regime_is_near_the_exact_result(monkeypatch, case, regime, dtype):
    from kernels.dynamic_conv.triton import ops

    def fixed(problem, device):
        made = plan(problem, device)
        free = made.regime not in ("depthwise", "pointwise") and problem.experts <= configs.EXPERTS_ACCUMULATED
        return made._replace(chunk=2, regime=regime if free else made.regime)

    monkeypatch.setattr(ops, "plan", fixed)
    arguments, options = wide_arguments(case, dtype)
    arguments[0] = arguments[0].to(memory_format=torch.channels_last)
    assert_near_exact(dynamic_conv2d, arguments, options, dtype)


@pytest.mark.parametrize("row", configs.CONVOLUTION + configs.SWAPPED + configs.STACKED)
def test_every_row_is_near_the_exact_result(monkeypatch, row):
    from kernels.dynamic_conv.triton import ops

    regime = "stacked" if row in configs.STACKED else "aggregate"
    monkeypatch.setattr(ops, "plan", lambda p, d: plan(p, d)._replace(regime=regime, forward=row, input_gradient=row))
    x, experts, mixing = randn(8, 72, 14, 14), randn(4, 136, 72, 3, 3, seed=1), randn(8, 4, seed=2)
    arguments = [x.bfloat16().to(memory_format=torch.channels_last), experts.bfloat16(), mixing, None]
    assert_near_exact(dynamic_conv2d, arguments, {"padding": 1}, torch.bfloat16)


@both
def test_two_runs_agree_bit_for_bit(function):
    arguments, options = ARGUMENTS[function]("padded", torch.bfloat16)
    arguments = [argument.to(DEVICE) for argument in arguments]
    for one, other in zip(
        outcome(function, arguments, **options), outcome(function, arguments, **options), strict=True
    ):
        assert torch.equal(one, other)


def test_a_cuda_graph_replays_with_new_numbers():
    x, experts, mixing = (
        t.to(DEVICE) for t in (randn(8, 32, 14, 14), randn(4, 48, 32, 3, 3, seed=1), randn(8, 4, seed=2))
    )
    torch.use_deterministic_algorithms(False)  # filling with NaN is not captured
    leaves = [x.requires_grad_(), experts.requires_grad_(), mixing.requires_grad_()]

    def step():
        y = dynamic_conv2d(*leaves, padding=1)
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
        x.copy_(randn(8, 32, 14, 14, seed=9))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_module_trains_like_the_eager_one(mode):
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    layer = DynamicConv2d(16, 24, 3, padding=1).to(DEVICE).to(memory_format=torch.channels_last)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for batch in (8, 8, 5):
        x = randn(batch, 16, 14, 14, seed=batch).to(DEVICE).to(memory_format=torch.channels_last)
        with torch.autocast(DEVICE, torch.bfloat16):
            y = compiled(x)
            y.float().square().mean().backward()
            gradients = [p.grad.clone() for p in layer.parameters()]
            layer.zero_grad()
            expected = layer(x)
            expected.float().square().mean().backward()
        torch.testing.assert_close(y, expected)
        for got, parameter in zip(gradients, layer.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=2e-2, atol=1e-4)
        layer.zero_grad()


def test_float64_runs_the_eager_form():
    arguments, options = ARGUMENTS[per_sample_conv2d]("padded", torch.float64)
    arguments = [argument.to(DEVICE) for argument in arguments]
    assert explain(per_sample_conv2d, *arguments, **options).implementation == "eager"
    expected = per_sample_conv2d.reference(*arguments, **options)
    torch.testing.assert_close(per_sample_conv2d(*arguments, **options), expected)
