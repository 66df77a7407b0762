import copy
import io
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrizations import weight_norm

from polychrome import kernels
from polychrome.kernels import fuse, use_backend
from polychrome.kernels.fuse import Left
from polychrome.kernels.modules import DynamicConv2d
from tests.kernels.fused import OpsCalled, assert_alike, assert_equal_training, outcome, twins
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import randn
from tests.kernels.written_elsewhere import (
    CBAM,
    ECA,
    Attention2d,
    CBAMBlock,
    ChannelAttention,
    ChannelGate,
    CoordAtt,
    DynamicConv,
    GatedCBAM,
    HardSwish,
    InlineSE,
    LoopedCondConv,
    MobileSE,
    ModulatedConv,
    ODConv,
    ReflectedDynamicConv,
    RoutedCondConv,
    SELayer,
    SharedTiesAttention,
    SingleSE,
    SKConv,
    SpatialAttention,
    SpatialGate,
    SwishSE,
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
        ("3.ChannelGate", "ChannelGate", "channel_scale"),
        ("3.SpatialGate", "SpatialGate", "channel_stats, spatial_gate"),
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


def test_a_hook_on_all_modules_leaves_all_alone():
    """Under it a swapped module runs its own forward, so that a trial would confirm anything."""
    misc = pytest.importorskip("torchvision").ops.misc
    modules = misc.SqueezeExcitation(8, 2), SwishSE(8), DynamicConv(4, 4, 3), CBAM(8)
    handle = register_module_forward_hook(lambda *_: None)
    try:
        report = fuse(nn.ModuleList(modules))
    finally:
        handle.remove()
    assert report.swapped == ()
    assert {left.reason for left in report.left} == {"a hook on all modules"}
    assert [left.path for left in report.left] == ["0", "1", "2", "3"]


class Forgetful(SELayer):
    """Its copies are not like it."""

    def __init__(self, planes):
        super().__init__(planes)
        self.made = [object()]

    def __deepcopy__(self, memo):
        other = Forgetful(self.fc[0].in_features).to(self.fc[0].weight.dtype)
        other.load_state_dict(self.state_dict())
        other.__dict__ |= {name: value for name, value in self.__dict__.items() if name.startswith("_fuse")}
        other.__class__ = self.__class__
        return other


def test_a_module_whose_copies_would_run_their_own_forward_is_not_confirmed():
    (left,) = fuse(Forgetful(8)).left
    assert left.reason == "a copy of it is not as it is"


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

    model = nn.ModuleList(kind(4, 4, 3) for kind in (ReflectedDynamicConv, Scaled, OnlyInTraining, Broken))
    model.append(Padded(4, 4, 3, padding=1))
    report = fuse(model)
    assert report.swapped == ()
    assert [left.reason for left in report.left] == [
        "not what dynamic_conv2d computes: the output is [3, 4, 8, 11], not [3, 4, 6, 9]",
        *(left.reason for left in report.left[1:3]),
        "its forward cannot be tried on x [3, 4, 8, 11]: KeyError: 'nothing here'",
        report.left[4].reason,
    ]
    for left in (*report.left[1:3], report.left[4]):
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


def test_gates_of_a_spelling_of_their_own_are_found_and_equal():
    model = nn.Sequential(MobileSE(8), SwishSE(8), SingleSE(8), ECA(), ChannelGate(8))
    _, report = assert_equal_training(model, randn(3, 8, 7, 6))
    assert [swap.op for swap in report.swapped] == ["channel_scale"] * 2 + ["channel_gate"] + ["channel_scale"] * 2


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "groups": 2, "bias": False, "K": 3}])
def test_experts_whose_mix_is_an_argument_are_found_and_equal(options):
    layer = RoutedCondConv(6, 8, 3, **options)
    x, mix = randn(3, 6, 9, 8), torch.rand(3, options.get("K", 4))
    fused, report = assert_equal_training(layer, x, mix)
    assert [swap.op for swap in report.swapped] == ["dynamic_conv2d"]
    with use_backend("reference"), OpsCalled() as called:
        by_name = fused(x.double(), routing_weight=mix.double())
    assert called.names == set()  # the definition is no op
    torch.testing.assert_close(by_name, layer.double()(x.double(), mix.double()))


@needs_interpreter
def test_a_mix_given_by_name_goes_to_the_op():
    layer = RoutedCondConv(6, 8, 3)
    fuse(layer)
    with use_backend("triton"), OpsCalled() as called:
        layer(randn(2, 6, 5, 5), routing_weight=torch.rand(2, 4))
    assert called.names == {"dynamic_conv2d"}


class TwoAttentions(DynamicConv):
    """Its attention gives a mix and a scale."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.attention = Doubled(self.attention)

    def forward(self, x):
        _, scale = self.attention(x)
        return x * scale


class Doubled(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x), x.mean()


class StyledExperts(ModulatedConv):
    """Two kernels that a style scales."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight = nn.Parameter(torch.cat([self.weight, self.weight]))

    def forward(self, x, style):
        return F.conv2d(x, self.weight.sum(0)) * self.modulation(style).sum()


LEFT = {
    "a gate of rows": (
        CoordAtt(8),
        r"it multiplies its input by a gate \[batch, channels, 1, width\] and what it makes",
    ),
    "branches": (SKConv(8), r"it multiplies what it makes by a gate \[batch=3, 2, 8, 1, 1\]; channel_scale: its input"),
    "a gate in the middle": (
        InlineSE(8),
        r"it multiplies what it makes by a gate \[batch, channels, 1, 1\]; channel_scale",
    ),
    "two attentions": (TwoAttentions(6, 8, 3), r"its attention gives a tuple, not a mix \[batch, experts\]"),
    "four attentions and a padding": (ODConv(6, 8), "not what dynamic_conv2d computes: the output is"),
    "one sample at a time": (LoopedCondConv(6, 8, 3), "its routing does not take a batch of maps: RuntimeError"),
    "a style": (
        StyledExperts(6, 8, 3),
        r"it is called with x, style and has modulation beside weight \[2, 8, 6, 3, 3\]: ",
    ),
    "divided ties": (
        SharedTiesAttention(),
        "not what spatial_attention computes: with ties, zeros and constants the gradient of the input differs by",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_no_op_computes_is_left_with_a_reason(name):
    module, reason = LEFT[name]
    report = fuse(nn.Sequential(module, HardSwish()))
    assert report.swapped == ()
    assert [left.path for left in report.left] == ["0"]
    assert re.match(reason, report.left[0].reason), report.left[0].reason


class Video(nn.Module):
    """Not a convolution at all, but a parameter of five dimensions."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 8, 4, 7, 6))
        self.se = SELayer(8)

    def forward(self, x):
        return self.se(x) + self.places.mean(2)


class TwoSets(DynamicConv):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.second = nn.Parameter(torch.zeros_like(self.weight))


class Normed(DynamicConv):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.ones(3))


class Conv3d(nn.Conv3d):
    pass


def test_every_parameter_of_five_dimensions_is_accounted_for():
    layers = DynamicConv(4, 4, 3), DynamicConv(4, 4, 3), DynamicConv(4, 4, 3)
    layers[1].attention = None
    layers[2].attention = nn.ModuleList([layers[2].attention])
    model = nn.ModuleList([Video(), TwoSets(4, 4, 3), Normed(4, 4, 3), Conv3d(2, 2, 3), nn.Conv3d(2, 2, 3), *layers])
    hooked = DynamicConv(4, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    model.append(hooked)
    report = fuse(model)
    assert [swap.path for swap in report.swapped] == ["0.se", "5"]
    reasons = {left.path: left.reason for left in report.left}
    assert list(reasons) == ["0", "1", "2", "6", "7", "8"]
    assert reasons["0"].startswith("its forward cannot be tried on x [3, 4, 12, 15]: RuntimeError: ")
    assert reasons["1"] == "it has 2 parameters of five dimensions: weight, second"
    assert reasons["2"] == "beside weight [4, 4, 4, 3, 3] it has gain, which dynamic_conv2d has no place for"
    assert reasons["6"].startswith("it is called with x and has no layers beside weight [4, 4, 4, 3, 3]: ")
    assert reasons["7"].startswith("its forward cannot be tried on x [3, 4, 8, 11]: NotImplementedError: ")
    assert reasons["8"].startswith("forward hook: ")


def test_tied_maxima_decide_between_two_rules():
    """A bfloat16 map has many: `max_pool2d` gives one of them all of the gradient, `amax` each its share."""

    class Shared(ChannelGate):
        def forward(self, x):
            total = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
            return x * torch.sigmoid(total)[:, :, None, None]

    x = randn(3, 8, 7, 6).mul(2).round()
    x[1] = 0
    for kind in (ChannelGate, Shared):
        _, report = assert_equal_training(kind(8), x)
        assert [swap.op for swap in report.swapped] == ["channel_scale"]


def test_a_rectifier_with_another_slope_at_zero_is_told_apart():
    class Halved(SELayer):
        def forward(self, x):
            first, _, second, gate = self.fc
            y = first(x.mean((2, 3)))
            y = torch.maximum(y, torch.zeros_like(y))  # whose slope at zero is a half
            return x * gate(second(y))[:, :, None, None]

    x = randn(3, 8, 5, 4)
    x[1:] = 0
    _, report = assert_equal_training(Halved(8), x)
    assert [swap.op for swap in report.swapped] == ["channel_scale"]


def test_a_gates_product_is_the_op_whichever_way_it_is_written():
    class Written(nn.Module):
        def __init__(self, product):
            super().__init__()
            self.fc, self.product = nn.Linear(6, 6), product

        def forward(self, x):
            return self.product(x, self.fc(x.mean((2, 3))).tanh()[:, :, None, None])

    ways = [
        lambda x, gate: x * gate,
        lambda x, gate: gate * x,
        lambda x, gate: gate.expand_as(x) * x,
        lambda x, gate: torch.mul(x, gate.expand(-1, -1, *x.shape[2:])),
        lambda x, gate: torch.multiply(gate, x),
        lambda x, gate: x.mul(gate),
    ]
    for way in ways:
        _, report = assert_equal_training(Written(way), randn(3, 6, 5, 4))
        assert [swap.op for swap in report.swapped] == ["channel_scale"]
    for other in (lambda x, gate: x / gate, lambda x, gate: x + gate, lambda x, gate: x * gate.mean(1, keepdim=True)):
        assert fuse(Written(other)).swapped == ()


class InPlace(SwishSE):
    def forward(self, x):
        x *= torch.sigmoid(self.expand(self.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return x


class Scale(nn.Module):
    """The product in a module of its own, without parameters."""

    def forward(self, x, gate):
        return x * gate


class Apart(SwishSE):
    def __init__(self, planes):
        super().__init__(planes)
        self.scale = Scale()

    def forward(self, x):
        return self.scale(x, torch.sigmoid(self.expand(self.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))))


def test_a_product_in_place_is_left_and_one_in_a_module_of_its_own_is_found():
    (left,) = fuse(InPlace(8)).left
    assert left.reason.startswith("it multiplies its input, in place, by a gate [batch, channels, 1, 1]; channel_scale")
    _, report = assert_equal_training(Apart(8), randn(3, 8, 5, 4))
    assert [swap.op for swap in report.swapped] == ["channel_scale"]


class Nested(nn.Module):
    """A gate made by a network that has modules to swap itself."""

    def __init__(self, planes):
        super().__init__()
        self.conv, self.se = DynamicConv(planes, planes, 3, padding=1), SELayer(planes)
        self.fc = nn.Conv2d(planes, planes, 1)

    def forward(self, x):
        return x * self.fc(self.se(self.conv(x))).mean((2, 3), keepdim=True).sigmoid()


def test_what_makes_a_gate_is_swapped_too():
    fused, report = assert_equal_training(Nested(8), randn(3, 8, 6, 5))
    assert [(swap.path, swap.op) for swap in report.swapped] == [
        ("", "channel_scale"),
        ("conv", "dynamic_conv2d"),
        ("se", "channel_gate"),
    ]
    assert [left.path for left in fuse(fused).left] == ["", "conv", "se"]


def test_a_product_in_another_dtype_stays_torchs():
    layer, x = SwishSE(8), randn(2, 8, 5, 4, dtype=torch.bfloat16)
    layer.reduce.register_buffer("unused", torch.zeros(1))
    fuse(layer.bfloat16())
    layer.silu = nn.Identity()
    with use_backend("reference"):
        assert layer(x).dtype == torch.bfloat16

    class Wide(SwishSE):
        def forward(self, x):
            y = self.expand(self.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
            return torch.sigmoid(y).to(torch.float64) * x

    model, fused, _ = twins(Wide(8))
    x = randn(2, 8, 5, 4)
    with use_backend("reference"):
        assert fused(x).dtype == model(x).dtype == torch.float64


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


class NormalisedAttention(Attention2d):
    """Counts its batches."""

    def __init__(self, in_planes, experts):
        super().__init__(in_planes, 0.25, experts, 1)
        self.bn = nn.BatchNorm2d(in_planes)

    def forward(self, x):
        return super().forward(self.bn(x))


def test_an_attention_that_counts_its_batches_is_compared_from_the_same_count():
    layer = DynamicConv(8, 6, 3, temperature=1)
    layer.attention = NormalisedAttention(8, 4)
    _, report = assert_equal_training(layer, randn(3, 8, 9, 7))
    assert [swap.op for swap in report.swapped] == ["dynamic_conv2d"]
    assert layer.attention.bn.num_batches_tracked == 0
