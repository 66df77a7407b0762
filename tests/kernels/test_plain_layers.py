"""Whatever torch, or anybody, does to a layer inside an op's module, the module computes with it."""

import copy
import pickle
import warnings
from functools import partial
from threading import Lock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.ao.nn.qat import Conv2d as QuantizedConv2d
from torch.ao.nn.qat import Linear as QuantizedLinear
from torch.ao.quantization import get_default_qat_qconfig, quantize_dynamic
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from polychrome.kernels import fuse, use_backend
from polychrome.kernels.fuse.swapped import has_changed
from polychrome.kernels.modules import CBAM as BothAttentions
from polychrome.kernels.modules import ECA as NeighboursGate
from polychrome.kernels.modules import ChannelGate, DynamicConv2d, SpatialAttention
from polychrome.kernels.plain import TRACES_ATTRIBUTES, is_centred, is_plain, is_pointwise
from tests.grids import grid
from tests.kernels.fused import OpsCalled, assert_alike
from tests.kernels.oracle import randn
from tests.kernels.written_elsewhere import CBAM, ECA, DynamicConv, MobileSE, SELayer, SingleSE, SwishSE
from tests.kernels.written_elsewhere import ChannelGate as MaxGate
from tests.kernels.written_elsewhere import SpatialGate as NormalisedGate


class Adapter(nn.Module):
    """A layer and a trained correction of what it returns."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.scale = layer, nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.layer(x) * (1 + self.scale)


def replace(owner, name, made):
    setattr(owner, name, made(getattr(owner, name)))


def replace_forward(layer):
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)


def rebias(layer):
    layer.bias = nn.Parameter(torch.arange(1, len(layer.weight) + 1).to(layer.weight))


def resettled(**settings):
    """Return a function that makes a layer of other settings with the weights of its argument."""

    def made(layer):
        k, options = layer.kernel_size, {"padding": layer.padding, "bias": layer.bias is not None, **settings}
        if "dilation" in settings:
            options["padding"] = tuple(settings["dilation"] * each for each in layer.padding)
        other = type(layer)(layer.in_channels, layer.out_channels, k, **options).to(layer.weight.dtype)
        other.load_state_dict(layer.state_dict(), strict=False)
        return other

    return made


def replace_convolution(layer):
    layer._conv_forward = lambda x, weight, bias: 2 * type(layer)._conv_forward(layer, x, weight, bias)


def quantized(layer):
    kind = QuantizedLinear if isinstance(layer, nn.Linear) else QuantizedConv2d
    layer.qconfig = get_default_qat_qconfig()
    return kind.from_float(layer)


# How a layer is changed, given its owner and its name.
CHANGES = {
    "forward hook": lambda o, n: getattr(o, n).register_forward_hook(lambda _, __, y: y * 1.5),
    "forward pre hook": lambda o, n: getattr(o, n).register_forward_pre_hook(lambda _, given: (given[0] * 1.5,)),
    "backward hook": lambda o, n: getattr(o, n).register_full_backward_hook(lambda _, dx, __: tuple(3 * d for d in dx)),
    "backward pre hook": lambda o, n: getattr(o, n).register_full_backward_pre_hook(lambda _, dy: (3 * dy[0],)),
    "spectral norm": lambda o, n: parametrizations.spectral_norm(getattr(o, n)),
    "spectral norm, as a hook": lambda o, n: nn.utils.spectral_norm(getattr(o, n)),
    "weight norm": lambda o, n: parametrizations.weight_norm(getattr(o, n)),
    "weight norm, as a hook": lambda o, n: nn.utils.weight_norm(getattr(o, n)),
    "orthogonal": lambda o, n: parametrizations.orthogonal(getattr(o, n)),
    "pruning": lambda o, n: prune.random_unstructured(getattr(o, n), "weight", 0.5),
    "adapter": lambda o, n: replace(o, n, Adapter),
    "sequence": lambda o, n: replace(o, n, lambda layer: nn.Sequential(layer, nn.Dropout(0.0), nn.Tanh())),
    "forward replaced": lambda o, n: replace_forward(getattr(o, n)),
    "quantisation": lambda o, n: replace(o, n, quantized),
    "convolution replaced": lambda o, n: replace_convolution(getattr(o, n)),
    "bias": lambda o, n: rebias(getattr(o, n)),
    "padding mode": lambda o, n: replace(o, n, resettled(padding_mode="replicate")),
    "dilation": lambda o, n: replace(o, n, resettled(dilation=2)),
}
IN_FLOAT32 = ("quantisation",)
# What a layer with a kernel of one pixel does not show, and a linear layer has not.
OF_PIXELS = ("padding mode", "dilation")
OF_CONVOLUTIONS = (*OF_PIXELS, "convolution replaced")


def change(module, path, name):
    owner, _, layer = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's older norms, and its quantisation, are deprecated
        CHANGES[name](module.get_submodule(owner), layer)


def trained(module, x):
    """Return output, and the gradients of x and all parameters, of the second of two steps of training."""
    module.train()
    x = x.clone().requires_grad_()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        x.grad = None
        y = module(x)
        y.backward(randn(*y.shape, seed=3, dtype=y.dtype))
        gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        optimizer.step()
    return {"output": y.detach(), "x": x.grad, **gradients}


class GateByDefinition(ChannelGate):
    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        if self.fc1 is not None:
            y = self.fc1(y).relu()
        return x * self.fc2(y).sigmoid()


class AttentionByDefinition(SpatialAttention):
    def forward(self, x):
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)).sigmoid()


class ConvByDefinition(DynamicConv2d):
    def forward(self, x):
        attention, y = self.attention, x.mean((2, 3), keepdim=True)
        if attention.fc1 is not None:
            y = attention.fc1(y).relu()
        return super().forward(x, (attention.fc2(y).flatten(1) / attention.temperature).softmax(1))


class NeighboursByDefinition(NeighboursGate):
    def forward(self, x):
        return x * self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[:, :, None, None].sigmoid()


class BothByDefinition(BothAttentions):
    def forward(self, x):
        pooled = torch.cat([x.mean((2, 3)), x.flatten(2).max(2).values])  # a layer may count its calls
        x = x * sum(self.ChannelGate.mlp(pooled).chunk(2)).sigmoid()[:, :, None, None]
        return x * self.SpatialGate.spatial.conv(torch.cat([x.max(1, True).values, x.mean(1, True)], 1)).sigmoid()


def both(kind):
    return partial(kind, kernel_size=3, batch_norm=False)


OURS = {
    "ECA.conv": (NeighboursGate, NeighboursByDefinition, (6, 3), "conv"),
    "CBAM.mlp, first": (both(BothAttentions), both(BothByDefinition), (6, 2), "ChannelGate.mlp.1"),
    "CBAM.mlp, second": (both(BothAttentions), both(BothByDefinition), (6, 2), "ChannelGate.mlp.3"),
    "CBAM.conv": (both(BothAttentions), both(BothByDefinition), (6, 2), "SpatialGate.spatial.conv"),
    "SpatialAttention.conv": (SpatialAttention, AttentionByDefinition, (3, True), "conv"),
    "ChannelGate.fc1": (ChannelGate, GateByDefinition, (6, 3), "fc1"),
    "ChannelGate.fc2": (ChannelGate, GateByDefinition, (6, 3), "fc2"),
    "ChannelGate.fc2 alone": (ChannelGate, GateByDefinition, (6,), "fc2"),
    "attention.fc1": (DynamicConv2d, ConvByDefinition, (6, 4, 3), "attention.fc1"),
    "attention.fc2": (DynamicConv2d, ConvByDefinition, (6, 4, 3), "attention.fc2"),
}


def made(kind, *arguments, dtype=torch.float64):
    torch.manual_seed(0)
    return kind(*arguments).to(dtype)


LARGE = ("SpatialAttention.conv", "ECA.conv", "CBAM.conv")


@grid(
    lambda layer, by: (
        (by not in OF_PIXELS or layer in LARGE)
        and (by not in OF_CONVOLUTIONS or "mlp" not in layer)
        and (layer, by) != ("ECA.conv", "quantisation")
    ),
    strength=1,
    layer=list(OURS),
    by=list(CHANGES),
)
def test_a_changed_layer_in_our_modules_is_called(layer, by):
    kind, definition, arguments, path = OURS[layer]
    dtype = torch.float32 if by in IN_FLOAT32 else torch.float64
    ours, theirs = made(kind, *arguments, dtype=dtype), made(definition, *arguments, dtype=dtype)
    x = randn(3, 6, 9, 8, dtype=dtype)
    plain = ours(x).detach()
    for module in (ours, theirs):
        torch.manual_seed(1)
        change(module, path, by)
    assert_alike(trained(theirs, x), trained(ours, x), 1e-4 if dtype == torch.float32 else 1e-9)
    if by not in ("backward hook", "backward pre hook", *IN_FLOAT32):
        torch.manual_seed(2)
        assert not torch.allclose(plain, ours.eval()(x), rtol=1e-3)


# Module, channels of x, path of a layer whose parameters an op takes, or that stands between what is called.
FUSED = {
    "SE, first": (SELayer, (8,), 8, "fc.0"),
    "SE, second": (SELayer, (8,), 8, "fc.2"),
    "one layer": (SingleSE, (8,), 8, "fc"),
    "SE, SiLU": (SwishSE, (8,), 8, "expand"),
    "SE, normalised": (MobileSE, (8,), 8, "se.0"),
    "mean and maximum": (MaxGate, (8,), 8, "mlp.1"),
    "ECA": (ECA, (), 8, "conv"),
    "CBAM, channels": (CBAM, (8,), 8, "ca.fc1"),
    "CBAM, pixels": (CBAM, (8,), 8, "sa.conv1"),
    "pixels, normalised": (NormalisedGate, (), 8, "spatial.conv"),
    "attention of experts": (DynamicConv, (8, 6, 3), 8, "attention.fc2"),
}


def twins(name, dtype=torch.float64):
    kind, arguments, channels, path = FUSED[name]
    own, fused = made(kind, *arguments, dtype=dtype), made(kind, *arguments, dtype=dtype)
    assert len(fuse(fused).swapped) == 1
    return own, fused, randn(3, channels, 9, 8, dtype=dtype), path


def is_linear_or_conv2d(module):
    return isinstance(module, nn.Linear | nn.Conv2d)


# What torch itself refuses: before an activation in place, and a quantised layer in one dimension.
LINEAR = ("SE, first", "SE, second", "one layer", "mean and maximum")
REFUSED = [("SE, first", by) for by in ("sequence", "backward hook", "backward pre hook")] + [("ECA", "quantisation")]


@grid(
    lambda layer, by: (layer, by) not in REFUSED and (by not in OF_CONVOLUTIONS or layer not in LINEAR),
    strength=1,
    layer=list(FUSED),
    by=list(CHANGES),
)
def test_a_layer_changed_after_fuse_is_called(layer, by):
    own, fused, x, path = twins(layer, torch.float32 if by in IN_FLOAT32 else torch.float64)
    for module in (own, fused):
        torch.manual_seed(1)
        change(module, path, by)
    with use_backend("reference"):  # on a CPU it would run its own forward anyway
        ours = trained(fused, x)
    assert_alike(trained(own, x), ours, 1e-4 if by in IN_FLOAT32 else 1e-9)


ACTIVATIONS = {
    "SE, first": ("fc.1", "fc.3"),
    "SE, SiLU": ("silu",),
    "SE, normalised": ("se.1", "se.2", "se.5"),
    "mean and maximum": ("mlp.2",),
    "ECA": ("sigmoid", "avg_pool"),
    "CBAM, pixels": ("sa.sigmoid", "ca.relu1"),
    "pixels, normalised": ("spatial.bn", "spatial"),
}


@grid(
    strength=1,
    place={f"{layer}-{path}": (layer, path) for layer, paths in ACTIVATIONS.items() for path in paths},
    by=["another", "a hook", "a forward"],
)
def test_an_activation_changed_after_fuse_is_what_is_computed(place, by):
    layer, path = place
    own, fused, x, _ = twins(layer)
    plain = own(x)
    for module in (own, fused):
        owner, _, name = path.rpartition(".")
        owner, inner = module.get_submodule(owner), module.get_submodule(path)
        if by == "another":
            setattr(owner, name, nn.Sequential(inner, nn.Softplus()))
        elif by == "a hook":
            inner.register_forward_hook(lambda _, __, y: y * 0.7)
        else:
            inner.forward = lambda x, inner=inner: 0.7 * type(inner).forward(inner, x)
    with use_backend("reference"):
        torch.testing.assert_close(fused(x), own(x))
    assert not torch.allclose(own(x), plain, rtol=1e-3)


def test_a_setting_changed_after_fuse_is_heard():
    own, fused, x, _ = twins("CBAM, pixels")
    for module in (own, fused):
        module.sa.conv1.padding_mode = "reflect"
        module.sa.conv1._reversed_padding_repeated_twice = [3, 3, 3, 3]
    with use_backend("reference"):
        torch.testing.assert_close(fused(x), own(x))
    twin = made(DynamicConv, 8, 6, 3)
    fuse(twin)
    twin.stride = 2
    with use_backend("reference"):
        assert twin(x).shape == (3, 6, 4, 3)


class Settings(SELayer):
    """A forward that goes by attributes of many kinds."""

    def __init__(self, planes):
        super().__init__(planes)
        self.number, self.act, self.factors, self.by_name = 1.0, torch.relu, [1.0], {"power": [1.0]}
        self.object = Factor(1.0)

    def forward(self, x):
        first, _, second, gate = self.fc
        y = self.act(first(x.mean((2, 3)))) * self.number * self.factors[0] * self.by_name["power"][0]
        return x * gate(second(y * self.object.value))[:, :, None, None]


class Factor:
    def __init__(self, value):
        self.value = value


ATTRIBUTES = {
    "a number": lambda m: setattr(m, "number", 2),
    "a function": lambda m: setattr(m, "act", torch.tanh),
    "in a list": lambda m: m.factors.__setitem__(0, 2.0),
    "in a list in a dict": lambda m: m.by_name["power"].__setitem__(0, 2.0),
    "an object": lambda m: setattr(m, "object", Factor(2.0)),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_changed_after_fuse_is_heard(name):
    own, fused, x = made(Settings, 8), made(Settings, 8), randn(2, 8, 5, 5, dtype=torch.float64)
    assert [swap.op for swap in fuse(fused).swapped] == ["channel_gate"]
    for twin in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert not has_changed(twin)
    plain = own(x)
    for module in (own, fused):
        ATTRIBUTES[name](module)
    with use_backend("reference"):
        torch.testing.assert_close(fused(x), own(x))
    assert not torch.allclose(own(x), plain, rtol=1e-4)


@pytest.mark.parametrize("kind", [SELayer, nn.Linear, nn.Conv2d], ids=lambda kind: kind.__name__)
def test_a_forward_changed_on_a_class_is_what_is_computed(kind, monkeypatch):
    own, fused, x, _ = twins("SE, first")
    gate, attention = made(ChannelGate, 8, 3), made(SpatialAttention, 3)
    by_definition, attended = made(GateByDefinition, 8, 3), made(AttentionByDefinition, 3)
    plain, forward = own(x), kind.forward
    with use_backend("reference"):
        torch.testing.assert_close(fused(x), plain)
        monkeypatch.setattr(kind, "forward", lambda self, x: 0.5 * forward(self, x))
        torch.testing.assert_close(fused(x), own(x))
        torch.testing.assert_close(gate(x), by_definition(x))
        torch.testing.assert_close(attention(x), attended(x))
    assert torch.allclose(own(x), plain) == (kind is nn.Conv2d)  # which that module has none of


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d], ids=lambda kind: kind.__name__)
def test_a_convolution_changed_on_a_class_is_what_is_computed(kind, monkeypatch):
    names = [name for name, (*_, path) in OURS.items() if "mlp" not in name]
    pairs = [(made(OURS[name][0], *OURS[name][2]), made(OURS[name][1], *OURS[name][2])) for name in names]
    own, fused, x, _ = twins("CBAM, pixels")
    convolve, small = kind._conv_forward, randn(3, 6, 9, 8, dtype=torch.float64)
    monkeypatch.setattr(kind, "_conv_forward", lambda self, *given: 0.5 * convolve(self, *given))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours(small), theirs(small))
    with use_backend("reference"):
        torch.testing.assert_close(fused(x), own(x))


class Activation(nn.Module):
    gain = 1.0

    def forward(self, x):
        return torch.relu(x * self.gain)


class Defined(SELayer):
    """A forward that goes by what its class defines."""

    gain, factors, lock = 1.0, [1.0], Lock()  # a lock cannot be copied

    def __init__(self, planes):
        super().__init__(planes)
        self.fc[1] = Activation()

    @property
    def shift(self):
        return 0.0

    @classmethod
    def made(cls, planes):
        return cls(planes)

    def scaled(self, x):
        return x * self.gain * self.factors[0] + self.shift

    def forward(self, x):
        return self.scaled(super().forward(x))


class Derived(Defined):
    pass


# What is changed of which class.
OF_CLASSES = {
    "a number": (Derived, "gain", 2.0),
    "a number of a base": (Defined, "gain", 2.0),
    "a list": (Defined, "factors", [2.0]),
    "a property": (Defined, "shift", property(lambda self: 1.0)),
    "a method": (Defined, "scaled", lambda self, x: 3 * x),
    "an activation's number": (Activation, "gain", -2.0),
}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_what_a_class_defines_is_heard_when_it_changes_after_fuse(name, monkeypatch):
    own, fused, x = made(Derived, 8), made(Derived, 8), randn(2, 8, 5, 5, dtype=torch.float64)
    assert [swap.op for swap in fuse(fused).swapped] == ["channel_gate"]
    alike = fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))
    plain, kept = own(x), pickle.dumps(fused)
    assert not any(map(has_changed, alike))
    monkeypatch.setattr(*OF_CLASSES[name], raising=False)
    for twin in (*alike, *([pickle.loads(kept)] if "number" in name else [])):
        with use_backend("reference"):
            torch.testing.assert_close(twin(x), own(x))
        assert has_changed(twin)
    assert not torch.allclose(own(x), plain, rtol=1e-4)


@pytest.mark.skipif(not TRACES_ATTRIBUTES, reason="this torch's Dynamo does not see what a class holds")
def test_a_compiled_module_hears_a_number_of_its_class(monkeypatch):
    torch._dynamo.reset()
    fused, x = made(Defined, 8), randn(2, 8, 5, 5, dtype=torch.float64)
    assert fuse(fused).swapped
    with use_backend("reference"):
        compiled = torch.compile(fused, backend="eager")
        torch.testing.assert_close(compiled(x), Defined.forward(fused, x))
        monkeypatch.setattr(Defined, "gain", 0.5)
        torch.testing.assert_close(compiled(x), Defined.forward(fused, x))


def test_a_tensor_and_a_count_that_a_class_holds_keep_the_own_forward():
    class WithTensor(SELayer):
        mask = torch.ones(())

        def forward(self, x):
            return super().forward(x) * self.mask

    class Counting(SELayer):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    assert [swap.op for swap in fuse(made(WithTensor, 8)).swapped] == ["channel_scale"]  # in its own forward
    (left,) = fuse(made(Counting, 8)).left
    assert left.reason == "its forward sets calls"


METHODS = {"forward": "fc.2", "_conv_forward": "sa.conv1", "scaled": ""}


class Helped(SELayer):
    """Its forward calls another method."""

    def forward(self, x):
        return super().forward(self.scaled(x))

    def scaled(self, x):
        return x


@pytest.mark.parametrize("method", METHODS)
def test_a_method_replaced_on_an_object_leaves_the_module_alone_or_is_heard_after_fuse(method):
    kind = {"forward": SELayer, "_conv_forward": CBAM, "scaled": Helped}[method]
    own, before, after = (made(kind, 8) for _ in range(3))
    assert [swap.path for swap in fuse(after).swapped] == [""]
    x = randn(3, 8, 9, 8, dtype=torch.float64)
    plain = own(x)
    for module in (own, before, after):
        inner = module.get_submodule(METHODS[method])
        original = getattr(type(inner), method)
        setattr(inner, method, lambda *given, inner=inner, original=original: 2 * original(inner, *given))
    report = fuse(before)
    assert report.swapped == () or method == "_conv_forward"
    assert any(f"{method} replaced on the object" in left.reason for left in report.left)
    with use_backend("reference"):
        torch.testing.assert_close(before(x), own(x))
        torch.testing.assert_close(after(x), own(x))
    assert not torch.allclose(own(x), plain, rtol=1e-3)


def test_a_fused_model_is_quantised_as_the_model_would_be():
    own, fused, x, _ = twins("SE, first", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own, fused = quantize_dynamic(own.eval(), {nn.Linear}), quantize_dynamic(fused.eval(), {nn.Linear})
    with use_backend("reference"):
        torch.testing.assert_close(fused(x), own(x))


def test_a_hook_on_all_modules_is_heard():
    x = randn(2, 6, 7, 7)
    modules = [made(ChannelGate, 6, 3, dtype=None), made(SpatialAttention, 3, dtype=None)]
    modules += [made(DynamicConv2d, 6, 4, 3, dtype=None), made(SELayer, 6, 3, dtype=None)]
    fuse(modules[-1])
    seen = []
    handle = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with use_backend("reference"):
            for module in modules:
                module(x)
    finally:
        handle.remove()
    layers = [m for module in modules for m in module.modules() if is_linear_or_conv2d(m)]
    assert len(layers) == 7
    assert all(any(m is layer for m in seen) for layer in layers)


def test_plain_layers_cost_no_call_of_their_own():
    x = randn(2, 6, 7, 7)
    for module, op in ((ChannelGate(6, 3), "channel_gate"), (SpatialAttention(3), "spatial_attention")):
        with OpsCalled() as called:
            module(x)
        assert called.names == {op}
        next(module.children()).register_forward_hook(lambda *_: None)
        with OpsCalled() as called:
            module(x)
        assert called.names == ({"channel_scale"} if op == "channel_gate" else {"channel_stats", "spatial_gate"})


def test_layers_in_low_precision_and_under_autocast_are_called_in_their_dtype():
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        for kind, _, arguments, path in OURS.values():
            module, x = made(kind, *arguments, dtype=dtype), randn(2, 6, 9, 8, dtype=dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                expected = module(x)
                module.get_submodule(path).register_forward_hook(lambda *_: None)
                got = module(x)
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


def test_what_is_plain():
    conv = nn.Conv2d(4, 4, 1)
    assert is_plain(conv, nn.Conv2d)
    assert is_pointwise(conv)
    for other in (None, nn.Linear(4, 4), nn.LazyConv2d(4, 1), nn.Conv1d(4, 4, 1)):
        assert not is_plain(other, nn.Conv2d)
    for options in ({"stride": 2}, {"padding": 1}, {"groups": 2}, {"padding_mode": "circular"}):
        assert not is_pointwise(nn.Conv2d(4, 4, 1, **options))
    assert is_centred(nn.Conv2d(2, 1, 3, padding=1))
    others = nn.Conv2d(2, 1, 3), nn.Conv2d(2, 1, 3, padding=2, dilation=2), nn.Conv2d(4, 1, 3, padding=1)
    for other in (*others, nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 1, 4, padding=2)):
        assert not is_centred(other)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_inner_layers_train(one_process):
    """FSDP2 puts a layer's parameters together in a hook of it."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for kind, _, arguments, path in OURS.values():
        for whole in (False, True):
            module, x = made(kind, *arguments, dtype=torch.float32), randn(2, 6, 9, 8)
            twin = copy.deepcopy(module)
            fully_shard(module.get_submodule(path), mesh=mesh)
            if whole:
                fully_shard(module, mesh=mesh)
            found = []
            for each in (module, twin):
                each(x).square().mean().backward()
                gradients = [p.grad for p in each.parameters()]
                found.append([g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients])
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other)
