"""The ops in the graphs of torch.fx, torch.jit.trace and torch.onnx."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from polychrome import kernels
from polychrome.kernels import augment, fuse
from polychrome.kernels.modules import (
    CBAM,
    ECA,
    ChannelGate,
    ChannelStats,
    DynamicConv1d,
    DynamicConv2d,
    ModulatedConv2d,
    ODConv2d,
    PerSampleConv1d,
    PerSampleConv2d,
    SpatialAttention,
    SpatialGate,
)
from tests.grids import grid, usual
from tests.kernels.fused import count_reads
from tests.kernels.op_calls import function_arguments, public
from tests.kernels.oracle import randn
from tests.kernels.written_elsewhere import ECA as ForeignECA
from tests.kernels.written_elsewhere import DynamicConv, SELayer


class Generated(nn.Module):
    """Kernels made from the input, and the gates of its pixels."""

    def __init__(self, channels):
        super().__init__()
        self.make, self.channels = nn.Linear(channels, channels * channels * 9), channels
        self.conv, self.stats, self.gate = PerSampleConv2d(padding="same"), ChannelStats(), SpatialGate()

    def forward(self, x):
        weight = self.make(x.mean((2, 3))).unflatten(1, (self.channels, self.channels, 3, 3))
        y = self.conv(x, weight)
        return self.gate(y, self.stats(y)[:, :1])


class Enlarged(nn.Module):
    """Twice the pixels, by kernels made from the input, then by shared experts."""

    def __init__(self, channels):
        super().__init__()
        self.make, self.channels = nn.Linear(channels, channels * channels * 9), channels
        self.experts = nn.Parameter(torch.randn(3, channels, 4, 3, 3))

    def forward(self, x):
        means = x.mean((2, 3))
        weight = self.make(means).unflatten(1, (self.channels, self.channels, 3, 3))
        y = kernels.per_sample_conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
        return kernels.dynamic_conv_transpose2d(y, self.experts, means[:, :3], dilation=2, output_padding=1)


class Signals(nn.Module):
    """Rows as signals: shared experts, then a filter for each."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.make = DynamicConv1d(channels, 4, 3, padding=1), nn.Linear(channels, 4 * 4 * 3)
        self.filter = PerSampleConv1d(padding="same")

    def forward(self, x):
        weight = self.make(x.mean((2, 3))).unflatten(1, (4, 4, 3))
        return self.filter(self.conv(x.flatten(2)), weight)


class Styled(nn.Module):
    """A modulated convolution whose style are the means."""

    def __init__(self, channels, **options):
        super().__init__()
        self.conv = ModulatedConv2d(channels, 4, 3, channels, **options)

    def forward(self, x):
        return self.conv(x, x.mean((2, 3)))


MODULES = {
    "dynamic": lambda: DynamicConv2d(6, 4, 3, padding=1),
    "dynamic, one layer": lambda: DynamicConv2d(6, 4, 3, stride=2, routing="sigmoid", bias=False),
    "dynamic, same": lambda: DynamicConv2d(6, 4, (3, 4), padding="same", dilation=(1, 2)),
    "dynamic, reflecting": lambda: DynamicConv2d(6, 4, 3, padding=(0, 3, 2, 1), padding_mode="reflect"),
    "channel gate": lambda: ChannelGate(6, 3),
    "one layer": lambda: ChannelGate(6, gate="softmax"),
    "spatial": lambda: SpatialAttention(3, bias=True),
    "signals": lambda: Signals(6),
    "four attentions": lambda: ODConv2d(6, 4, 3, padding=1),
    "four attentions, 1x1": lambda: ODConv2d(6, 4, 1),
    "CBAM": lambda: CBAM(6, 3),
    "CBAM, not normalised": lambda: CBAM(6, 3, batch_norm=False),
    "neighbours": lambda: ECA(6, 3),
    "generated": lambda: Generated(6),
    "styled": lambda: Styled(6),
    "styled, enlarged": lambda: Styled(6, upsample=True),
    "styled, reduced": lambda: Styled(6, downsample=True),
    "enlarged": lambda: Enlarged(6),
}


def doubled(_, __, y):
    return 2 * y


def made(name):
    torch.manual_seed(0)
    return MODULES[name]()


@pytest.mark.parametrize("function", public(), ids=lambda f: f.__name__)
def test_public_functions_are_leaves_of_a_traced_graph(function):
    arguments, options = function_arguments(function.__name__, torch.float32)

    class Calls(nn.Module):
        def forward(self, x, by_name):
            _, *rest = arguments
            return function(x, *rest, **options) if by_name is None else function(x, *rest[:-1], by_name, **options)

    graph = torch.fx.symbolic_trace(Calls(), {"by_name": None})
    calls = [node for node in graph.graph.nodes if node.op == "call_function" and node.target is function]
    assert len(calls) == 1
    assert torch.equal(graph(arguments[0], None), function(*arguments, **options))
    with pytest.raises((TypeError, ValueError), match="must be"):
        graph(arguments[0][0, 0], None)


@grid(name=list(MODULES), changed=[False, True])
def test_our_modules_are_traced_by_fx_and_the_graph_computes_with_their_parameters(name, changed):
    module = made(name)
    if changed:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(doubled)
    module = nn.Sequential(module)
    graph = torch.fx.symbolic_trace(module)
    for twin in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        for batch, dtype in ((2, torch.float32), (3, torch.float64)):
            x = randn(batch, 6, 7, 8, dtype=dtype)
            torch.testing.assert_close(twin.to(dtype)(x), module.to(dtype)(x), msg=f"{changed} {name}")
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert any("conv" in c or "channel" in c or "spatial" in c for c in calls)


WITH_LAYERS = [name for name, make in MODULES.items() if any(isinstance(m, nn.Conv2d) for m in make().modules())]


@pytest.mark.parametrize("name", [name for name in WITH_LAYERS if name not in ("generated", "enlarged")])
def test_what_is_done_to_the_layers_of_a_traced_graph_is_heard(name):
    module = nn.Sequential(made(name))
    graph, x = torch.fx.symbolic_trace(copy.deepcopy(module)), randn(2, 6, 7, 8)
    torch.testing.assert_close(graph(x), module(x))
    paths = [path for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
    assert paths
    for path in paths:
        for each in (module, graph):
            torch.manual_seed(1)
            nn.utils.prune.random_unstructured(each.get_submodule(path), "weight", 0.5)
            each.get_submodule(path).register_forward_hook(doubled)
        torch.testing.assert_close(graph(x), module(x))


def test_features_are_taken_from_models_of_our_modules():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = nn.Sequential(*(made(name) for name in ("channel gate", "spatial", "dynamic"))).eval()
    extractor = extraction.create_feature_extractor(model, {"0": "gated", "1": "attended", "2.attention": "mixing"})
    x = randn(2, 6, 7, 8)
    found = extractor(x)
    torch.testing.assert_close(found["gated"], model[0](x))
    torch.testing.assert_close(found["attended"], model[:2](x))
    torch.testing.assert_close(found["mixing"], model[2].attention(model[:2](x)))


@grid(strength=1, name=list(MODULES), training=[False, True], dtype=[torch.float32, torch.float64])
def test_a_traced_module_serves_calls_with_and_without_gradients_and_other_batches(name, training, dtype):
    """`torch.jit.trace` runs a module twice, in two ways of recording gradients, and compares the graphs."""
    module = made(name).train(training).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(module, randn(2, 6, 7, 8, dtype=dtype))
    normalised = training and any(isinstance(m, nn.BatchNorm2d) for m in module.modules())  # of one pixel, perhaps
    for batch in (3 if normalised else 1, 5):
        x = randn(batch, 6, 9, 8, seed=1, dtype=dtype)
        torch.testing.assert_close(traced(x), module(x))
        with torch.no_grad():
            torch.testing.assert_close(traced(x), module(x))
        mine, theirs = (torch.autograd.grad(m(x).sum(), list(module.parameters())) for m in (module, traced))
        for one, other in zip(mine, theirs, strict=True):
            if dtype == torch.float64:  # in float32 sums differ by their order, which depends on the processor
                torch.testing.assert_close(one, other)
            else:
                assert (one.dtype, one.shape) == (other.dtype, other.shape)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_reads_each_parameter_once(name):
    """A parametrisation computes a parameter whenever it is read: a random one would differ, spectral norm move on."""
    module = made(name).train()
    reads = count_reads(module)
    module(randn(2, 6, 7, 8))
    assert {path: count for path, count in reads.items() if count != 1} == {}


def test_a_traced_epilogue_can_be_trained():
    arguments, options = function_arguments("dynamic_conv2d", torch.float32)
    scale = randn(6).requires_grad_()
    with torch.no_grad():
        traced = torch.jit.trace(lambda x, s: kernels.dynamic_conv2d(x, *arguments[1:], scale=s, **options),
                                 (arguments[0], scale.detach()))  # fmt: skip
    traced(arguments[0], scale).sum().backward()
    expected = scale.detach().clone().requires_grad_()
    kernels.dynamic_conv2d(*arguments, scale=expected, **options).sum().backward()
    torch.testing.assert_close(scale.grad, expected.grad)


def test_tensorboard_draws_our_modules(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(
            nn.Sequential(*(made(name) for name in ("channel gate", "spatial", "dynamic"))), randn(2, 6, 7, 8)
        )
    assert b"dynamic_conv2d" in next(tmp_path.iterdir()).read_bytes()


def exported(model, x, **options):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), stream, input_names=["images"], verbose=False, **options)
    return stream.getvalue()


OF_ANY_BATCH = {
    "exported": {"dynamic_shapes": ({0: "batch"},)},
    "traced": {"dynamo": False, "dynamic_axes": {"images": {0: "batch"}}},  # torch's older exporter
}


@grid(
    lambda name, way: (name, way) != ("fused", "traced"),  # it cannot write the forward that the model had
    strength=1,
    name=usual([*MODULES, "fused"], "dynamic", "CBAM", "signals", "generated", "enlarged", "styled", "fused"),
    way=list(OF_ANY_BATCH),
)
def test_torchs_own_onnx_export_writes_our_ops_for_a_batch_of_any_size(name, way):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if name == "fused":
        model = nn.Sequential(DynamicConv(6, 8, 3), SELayer(8), ForeignECA())
        assert len(fuse(model).swapped) == 3
    else:
        model = made(name)
    model.eval()
    content = exported(model, randn(2, 6, 9, 8), **OF_ANY_BATCH[way])
    session = onnxruntime.InferenceSession(content)
    for batch in (1, 5):
        x = randn(batch, 6, 9, 8, seed=1)
        (found,) = session.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


def test_an_op_that_has_no_onnx_form_is_written_as_its_user_says():
    class Augmented(nn.Module):
        def forward(self, images):
            return augment(images, size=(4, 4)).mean((2, 3))

    def symbol(graph, images, *_):
        return graph.op("Transpose", graph.op("Cast", images, to_i=1), perm_i=[0, 3, 1, 2])

    torch.onnx.register_custom_op_symbolic("polychrome::augment", symbol, 17)
    try:
        content = exported(Augmented(), torch.zeros(2, 8, 8, 3, dtype=torch.uint8), dynamo=False, opset_version=17)
    finally:
        torch.onnx.unregister_custom_op_symbolic("polychrome::augment", 17)
    assert b"Transpose" in content
