import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.parametrizations import weight_norm

import kernels
from kernels import fuse, use_backend
from kernels.fuse import Left
from kernels.modules import DynamicConv2d
from tests.kernels.fused import OpsCalled, assert_alike, assert_equal_training, outcome, twins
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import randn
from tests.kernels.written_elsewhere import (
    CBAM,
    CBAMBlock,
    ChannelAttention,
    ChannelGate,
    DynamicConv,
    GatedCBAM,
    ReflectedDynamicConv,
    SELayer,
    SpatialAttention,
    SpatialGate,
)


def written_elsewhere():
    torch.manual_seed(0)
    return nn.Sequential(
        DynamicConv(6, 8, 3, padding=1),
        CBAM(8),
        CBAMBlock(8),
        GatedCBAM(8),
        SELayer(8),
        DynamicConv(8, 8, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
    )


def test_attentions_and_dynamic_convolutions_of_open_source_are_found_and_equal():
    _, report = assert_equal_training(written_elsewhere(), randn(3, 6, 11, 9))
    assert [(s.path, s.module, s.op) for s in report.swapped] == [
        ("0", "DynamicConv", "dynamic_conv2d"),
        ("1", "CBAM", "channel_scale, spatial_attention"),
        ("2.sa", "SpatialAttention", "channel_stats"),
        ("3.channels", "ChannelGate", "channel_scale"),
        ("3.pixels", "SpatialGate", "channel_stats, spatial_gate"),
        ("4", "SELayer", "channel_gate"),
        ("5", "DynamicConv", "dynamic_conv2d"),
    ]
    assert [(left.path, left.module) for left in report.left] == [("2.ca", "ChannelAttention")]
    assert report.left[0].reason.startswith("it returns the gate alone")


@needs_interpreter
def test_a_swapped_module_calls_the_ops_its_report_names():
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.layers import CondConv2d, SEModule
    from timm.layers.cbam import CbamModule

    for module, *others in (
        (DynamicConv(6, 8, 3, padding=1),),
        (CBAM(6),),
        (SpatialAttention(3),),
        (ChannelGate(6),),
        (SpatialGate(),),
        (SELayer(6),),
        (CondConv2d(6, 8, 3, stride=2, padding="same"), torch.rand(2, 4)),
        (CbamModule(6, rd_channels=3),),
        (SEModule(6, act_layer=nn.SiLU),),
        (SEModule(6),),
    ):
        module, fused, report = twins(module.eval())
        x = randn(2, 6, 9, 8)
        expected = outcome(module, x, *others)
        with use_backend("triton"), OpsCalled() as called:
            got = outcome(fused, x, *others)
        assert called.names == {op for swap in report.swapped for op in swap.op.split(", ")}, report
        assert_alike(expected, got, 1e-4)


def test_copies_pickles_and_saved_models_stay_fused():
    model, x = written_elsewhere().eval(), randn(2, 6, 11, 9)
    expected, report = model(x), fuse(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)):
        assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
        with use_backend("reference"):
            torch.testing.assert_close(twin(x), expected)
        assert len(fuse(twin).left) == len(report.swapped) + len(report.left)
    assert copy.deepcopy(model)[0].weight is not model[0].weight


def test_methods_attributes_and_types_of_a_swapped_module_are_its_own():
    layer, fused, _ = twins(DynamicConv(6, 8, 3, temperature=31).half().requires_grad_(False))
    x = randn(2, 6, 5, 5, dtype=torch.float16)
    assert isinstance(fused, DynamicConv)
    assert repr(fused).replace("FusedDynamicConv", "DynamicConv") == repr(layer)
    for m in (layer, fused):
        for _ in range(10):
            m.update_temperature()
    assert fused.attention.temperature == layer.attention.temperature == 1
    assert all(p.dtype == torch.float16 and not p.requires_grad for p in fused.parameters())
    with use_backend("reference"):
        after = fused(x)
    torch.testing.assert_close(after, layer(x), rtol=1e-2, atol=1e-2)


def test_a_parameter_that_an_optimizer_holds_goes_on_being_trained():
    layer = DynamicConv(6, 8, 3)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    fuse(layer)
    before = layer.weight.detach().clone()
    with use_backend("reference"):
        layer(randn(2, 6, 5, 5)).square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - layer.weight.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fused_model_runs_under_autocast(dtype):
    model, fused, _ = twins(written_elsewhere().eval())
    x = randn(2, 6, 11, 9)
    with torch.autocast("cpu", dtype=dtype):
        expected = outcome(model, x)
        got = outcome(fused, x)
        with use_backend("reference"):
            defined = outcome(fused, x)
    assert got["output"].dtype == defined["output"].dtype == expected["output"].dtype
    assert_alike({"output": expected["output"].float()}, {"output": defined["output"].float()}, 0.05)
    assert_alike({"output": expected["output"].float()}, {"output": got["output"].float()}, 0.05)


def test_a_fused_model_compiles_as_one_graph():
    torch._dynamo.reset()
    model, fused, _ = twins(written_elsewhere().eval())
    backend = CompileCounterWithBackend("aot_eager")
    x = randn(3, 6, 11, 9)
    got = outcome(torch.compile(fused, fullgraph=True, backend=backend), x)
    assert_alike(outcome(model, x), {name.removeprefix("_orig_mod."): value for name, value in got.items()}, 1e-4)
    called = {str(node.target).removesuffix(".default") for node in backend.graphs[0].graph.nodes}
    assert "polychrome.dynamic_conv2d" in called


def test_a_fused_model_can_be_traced_by_fx():
    model, fused, _ = twins(nn.Sequential(SELayer(8), SpatialGate(), nn.Conv2d(8, 4, 1)).eval())
    x = randn(2, 8, 5, 5)
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(x), model(x))


def test_fusing_twice_changes_nothing_and_says_so():
    model = written_elsewhere()
    first = fuse(model)
    classes = [type(m) for m in model.modules()]
    second = fuse(model)
    assert second.swapped == ()
    assert [left.path for left in second.left if left.reason == "already fused"] == [s.path for s in first.swapped]
    assert [type(m) for m in model.modules()] == classes


def test_our_own_modules_are_left_and_named():
    assert fuse(nn.Sequential(DynamicConv2d(4, 4, 3))).left == (
        Left("0", "DynamicConv2d", "already calls an op of kernels"),
    )


def test_hooks_and_parametrisations_are_left_alone_and_named():
    model = nn.Sequential(*(DynamicConv(4, 4, 3, padding=1) for _ in range(5)), SELayer(4, 2))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("layer"))
    model[1].attention.fc1.register_forward_pre_hook(lambda *_: calls.append("inside"))
    weight_norm(model[2])
    nn.utils.spectral_norm(model[3].attention.fc2)
    model[5].register_full_backward_hook(lambda *_: calls.append("backward"))
    report = fuse(model)
    assert [s.path for s in report.swapped] == ["4"]
    reasons = {left.path: left.reason for left in report.left}
    assert reasons["0"].startswith("forward hook: ")
    assert reasons["1"].startswith("forward pre hook on attention.fc1: ")
    assert reasons["2"] == "parametrisation of weight"
    assert reasons["3"] == "forward pre hook on attention.fc2: SpectralNorm"
    assert reasons["5"].startswith("backward hook: ")
    model(randn(2, 4, 5, 5)).sum().backward()
    assert calls == ["layer", "inside", "backward"]


def test_tied_weights_stay_tied_and_are_named():
    model = nn.Sequential(DynamicConv(4, 4, 3, padding=1), DynamicConv(4, 4, 3, padding=1))
    model[1].weight = model[0].weight
    model.append(model[0])
    fused, report = assert_equal_training(model, randn(2, 4, 5, 5))
    assert fused[0] is fused[2]
    assert fused[0].weight is fused[1].weight
    assert [s.note for s in report.swapped] == [
        "also at 2; weight shared with 1.weight",
        "weight shared with 0.weight, 2.weight",
    ]


def test_a_forward_replaced_on_the_object_is_left_alone():
    layer = SELayer(4, 2)
    layer.forward = lambda x: x
    assert fuse(layer).left == (Left("", "SELayer", "forward replaced on the object"),)
    assert layer(1) == 1


def test_what_looks_like_a_dynamic_convolution_and_is_none_is_left_with_the_difference():
    class Scaled(DynamicConv):
        def forward(self, x):
            return 2 * super().forward(x)

    class OnlyInTraining(DynamicConv):
        def forward(self, x):
            return super().forward(x) * (1.5 if self.training else 1)

    class Broken(DynamicConv):
        def forward(self, x):
            raise KeyError("nothing here")

    class Padded(DynamicConv):
        padding_mode = "circular"

    model = nn.ModuleList(kind(4, 4, 3) for kind in (ReflectedDynamicConv, Scaled, OnlyInTraining, Broken, Padded))
    report = fuse(model)
    assert report.swapped == ()
    assert [left.reason for left in report.left] == [
        "not what dynamic_conv2d computes: the output is [3, 4, 8, 11], not [3, 4, 6, 9]",
        *(left.reason for left in report.left[1:3]),
        "its forward cannot be tried: KeyError: 'nothing here'",
        "padding_mode 'circular': dynamic_conv2d pads with zeros",
    ]
    for left in report.left[1:3]:
        assert left.reason.startswith("not what dynamic_conv2d computes: in training the output differs by ")


class SetsAttributes(DynamicConv):
    """Keeps a penalty on its mixing, for the loss."""

    penalty = None

    def forward(self, x):
        self.penalty = self.attention(x).square().mean()
        return super().forward(x)


class CountsCalls(SELayer):
    """Keeps its gates' means in a list."""

    def __init__(self, channels):
        super().__init__(channels)
        self.means = []

    def forward(self, x):
        self.means.append(float(x.detach().mean()))
        return super().forward(x)


def test_a_forward_that_sets_attributes_is_left_alone_and_they_are_named():
    model = nn.Sequential(SetsAttributes(6, 8, 3), CountsCalls(8))
    report = fuse(model)
    assert not report.swapped
    assert [(left.path, left.reason) for left in report.left] == [
        ("0", "its forward sets penalty"),
        ("1", "its forward sets means"),
    ]
    model(randn(2, 6, 9, 9))
    assert model[0].penalty.requires_grad
    assert len(model[1].means) == 1


def test_an_unusual_gate_is_left_with_the_difference():
    class Hard(SpatialAttention):
        def __init__(self):
            super().__init__()
            self.sigmoid = nn.Hardsigmoid()

    (left,) = fuse(nn.Sequential(Hard())).left
    assert left.path == "0"
    assert left.reason.startswith("not what channel_stats computes: in training the output differs by ")


def test_the_order_of_the_maps_is_told_apart_though_the_weights_are_all_alike():
    class MaxFirst(SpatialAttention):
        def forward(self, x):
            maps = [x.max(1, keepdim=True).values, x.mean(1, keepdim=True)]
            return x * self.sigmoid(self.conv1(torch.cat(maps, 1)))

    layer = MaxFirst(3)
    nn.init.zeros_(layer.conv1.weight)
    fuse(layer)
    nn.init.normal_(layer.conv1.weight)
    x = randn(2, 4, 5, 5)
    with use_backend("reference"):
        torch.testing.assert_close(layer(x), MaxFirst.forward(layer, x))


def test_a_trial_leaves_no_trace():
    model = written_elsewhere()
    before = copy.deepcopy(model.state_dict())
    model[3].eval()
    state = torch.get_rng_state()
    with torch.inference_mode():
        fuse(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model[3].training
    assert model[2].training
    assert_alike(before, model.state_dict(), 0)
    assert all(p.grad is None for p in model.parameters())


def test_models_with_nothing_to_fuse_are_untouched():
    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x):
            return x + self.up(self.down(x))

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.conv = nn.UninitializedParameter(), nn.LazyConv2d(3, 1)

    model = nn.ModuleList([nn.LSTM(3, 4), Adapter(), Lazy()])
    report = fuse(model)
    assert (report.swapped, report.left) == ((), ())
    assert str(report) == "0 swapped, 0 left alone: no module here is known to fuse"
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got dict"):
        fuse({})


def test_the_report_is_a_table():
    assert str(fuse(nn.Sequential(SELayer(8), ChannelAttention(8)))).splitlines() == [
        "1 swapped, 1 left alone",
        "  0  SELayer           channel_gate",
        "  1  ChannelAttention  left: it returns the gate alone; its caller multiplies, which is what the op is for",
    ]
    assert str(fuse(SELayer(8))).splitlines()[1] == "  (the model)  SELayer  channel_gate"


def test_fuse_is_a_name_of_the_package():
    assert kernels.fuse is fuse
