"""The channel gate's Triton kernels on a CUDA device: `pytest -m gpu`."""

import pytest
import torch

from kernels import channel_gate
from kernels.launch import record_launches
from kernels.modules import ChannelGate
from tests.kernels.oracle import TOLERANCES, exact_outcome, outcome, randn, rms_ratio
from tests.kernels.test_channel_gate import FORMS, arguments_of

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda d: str(d).removeprefix("torch."))
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
gates = pytest.mark.parametrize("gate", ["sigmoid", "softmax"])


@pytest.fixture(autouse=True)
def poisoned_and_without_tf32(monkeypatch):
    """float32 means float32, and new memory is NaN until it is written."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(arguments, layout=torch.contiguous_format):
    x, *rest = (None if argument is None else argument.to(DEVICE) for argument in arguments)
    return [x.to(memory_format=layout), *rest]


def assert_near_exact(arguments, layout, gate):
    dtype = arguments[0].dtype
    grad = randn(*arguments[0].shape, seed=7, dtype=dtype)
    exact = exact_outcome(channel_gate, arguments, grad.double(), gate=gate)
    with record_launches() as launches:
        got = outcome(channel_gate, on_gpu(arguments, layout), grad.to(DEVICE), gate=gate)
    assert launches
    forward, backward = TOLERANCES[dtype]
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert (one is None) == (other is None)
        if one is not None:
            assert rms_ratio(one.cpu(), other) <= (backward if index else forward), f"output {index}"


@dtypes
@layouts
@pytest.mark.parametrize("form", FORMS)
@gates
def test_output_and_gradients_are_near_the_exact_ones(gate, form, layout, dtype):
    assert_near_exact(arguments_of(**FORMS[form], dtype=dtype), layout, gate)


@dtypes
@layouts
@pytest.mark.parametrize("single", [False, True], ids=["two_layers", "single"])
@pytest.mark.parametrize(
    "shape",
    [(8, 64, 56, 56), (3, 256, 14, 14), (8, 512, 7, 7), (2, 40, 33, 31), (5, 3, 64, 48), (1, 16, 128, 128)],
    ids=str,
)
def test_shapes_of_networks_are_near_the_exact_result(shape, single, layout, dtype):
    """Many splits of the pixels, several programs a sample, layers in the kernels and in torch."""
    x, w1, b1, w2, b2 = arguments_of(shape, max(1, shape[1] // 4), single=single, dtype=dtype)
    scaled = [None if w is None else w / w.shape[1] ** 0.5 for w in (w1, w2)]
    assert_near_exact([x, scaled[0], b1, scaled[1], b2], layout, "sigmoid")
    assert_near_exact([x, scaled[0], b1, scaled[1], b2], layout, "softmax")


@gates
@layouts
def test_two_runs_agree_bit_for_bit(layout, gate):
    arguments = on_gpu(arguments_of((4, 64, 56, 56), 4, dtype=torch.bfloat16), layout)
    first, second = (outcome(channel_gate, arguments, gate=gate) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_a_cuda_graph_replays_with_new_numbers():
    torch.use_deterministic_algorithms(False)  # filling with NaN is not captured
    leaves = [leaf.requires_grad_() for leaf in on_gpu(arguments_of((8, 32, 14, 14), 8))]

    def step():
        y = channel_gate(*leaves, gate="softmax")
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
        leaves[0].copy_(randn(8, 32, 14, 14, seed=9))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_module_trains_like_the_eager_one(mode):
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    layer = ChannelGate(16, 4).to(DEVICE).to(memory_format=torch.channels_last)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for batch in (8, 8, 5):
        x = randn(batch, 16, 14, 14, seed=batch).to(DEVICE).to(memory_format=torch.channels_last)
        y = compiled(x)
        y.square().mean().backward()
        gradients = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        expected = layer(x)
        expected.square().mean().backward()
        torch.testing.assert_close(y, expected)
        for got, parameter in zip(gradients, layer.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad)
        layer.zero_grad()


def test_float64_runs_the_eager_form():
    arguments = on_gpu([argument.double() for argument in arguments_of()])
    with record_launches() as launches:
        got = channel_gate(*arguments)
    assert not launches
    torch.testing.assert_close(got, channel_gate.reference(*arguments))
