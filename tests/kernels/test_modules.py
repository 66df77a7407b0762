import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from polychrome.kernels import (
    augment,
    channel_gate,
    channel_stats,
    dynamic_conv1d,
    modules,
    per_sample_conv1d,
    per_sample_conv2d,
    spatial_attention,
    spatial_gate,
    use_backend,
)
from polychrome.kernels.modules import (
    CBAM,
    ECA,
    ChannelGate,
    ChannelStats,
    DynamicConv1d,
    DynamicConv2d,
    ExpertAttention,
    ModulatedConv2d,
    ODConv2d,
    OmniDimensionalAttention,
    PerSampleConv1d,
    PerSampleConv2d,
    SpatialAttention,
    SpatialGate,
    anneal_temperature,
)
from tests.kernels import written_elsewhere
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import randn


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChannelGate(8, 0), "hidden_channels must be an int, at least 1, got 0"),
        (lambda: ChannelGate(0), "channels must be an int, at least 1, got 0"),
        (lambda: ChannelGate(8.0, 2), "channels must be an int, at least 1, got 8.0"),
        (lambda: ChannelGate(8, 2, gate="tanh"), "gate must be one of sigmoid, softmax, got 'tanh'"),
        (lambda: SpatialAttention(4), "kernel_size must be odd, got 4"),
        (lambda: SpatialAttention(1), "kernel_size must be an int, at least 3, got 1"),
        (lambda: SpatialAttention((3, 3)), r"kernel_size must be an int, at least 3, got \(3, 3\)"),
        (lambda: PerSampleConv2d(stride=0), "stride must be an int or a pair of ints, at least 1, got 0"),
        (
            lambda: PerSampleConv2d(padding="full"),
            r"padding must be an int, a pair of ints or four \(left, right, top, bottom\), at least 0",
        ),
        (lambda: PerSampleConv2d(2, "same"), r"padding='same' needs stride 1, got stride \(2, 2\)"),
        (lambda: PerSampleConv2d(dilation=1.5), "dilation must be an int or a pair of ints, at least 1, got 1.5"),
        (lambda: PerSampleConv2d(groups=0), "groups must be an int, at least 1, got 0"),
    ],
)
def test_a_size_out_of_range_is_refused_when_the_module_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_of_numpy_are_integers():
    two, one = np.int64(2), np.int32(1)
    ours = dynamic_conv(8, 6, np.int64(3), two, (one, one), one, two, experts=np.uint8(3))
    theirs = dynamic_conv(8, 6, 3, 2, 1, 1, 2, experts=3)
    x = randn(3, 8, 9, 7)
    assert torch.equal(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)
    weight, bias = randn(3, 6, 4, 3, 3), randn(3, 6)
    expected = per_sample_conv2d(x, weight, bias, 2, 1, 1, 2)
    for backend in ("auto", "reference"):
        with use_backend(backend):
            got = per_sample_conv2d(x, weight, bias, two, one, [one, one], two)
            torch.testing.assert_close(got, expected)
    assert shapes(ChannelGate(np.int64(8), two)) == shapes(ChannelGate(8, 2))
    assert shapes(SpatialAttention(np.int64(3))) == shapes(SpatialAttention(3))
    source = torch.zeros(2, 5, 6, 3, dtype=torch.uint8)
    assert augment(source, size=np.int64(4)).shape == augment(source, size=(np.int64(4), 4)).shape == (2, 3, 4, 4)
    for size in (True, 4.0, (4, None), "4"):
        with pytest.raises(TypeError, match="size must be an int or a pair of them"):
            augment(source, size=size)


def hooked(conv):
    conv.register_forward_hook(lambda *_: None)
    return conv


def tiled(conv):
    conv._conv_forward = lambda x, weight, bias: nn.functional.conv2d(x.roll(1, 3), weight, bias)
    return conv


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    "conv",
    [
        hooked(nn.Conv2d(4, 4, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        Standardised(4, 4, 3),
        tiled(nn.Conv2d(4, 4, 3)),
        nn.Conv1d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
    ],
    ids=["hook", "parametrisation", "forward of its own", "convolution of its own", "one dimension", "transposed"],
)
def test_a_convolution_that_does_more_than_its_weight_says_is_not_copied(conv):
    with pytest.raises(ValueError, match=r"conv must be a plain nn\.Conv2d, without hooks"):
        DynamicConv2d.from_conv(conv)


def test_a_convolution_whose_class_was_changed_is_not_copied(monkeypatch):
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: x)
    with pytest.raises(ValueError, match=r"conv must be a plain nn\.Conv2d, without hooks"):
        DynamicConv2d.from_conv(nn.Conv2d(4, 4, 3))


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_state_dict_names_are_the_documented_ones():
    assert shapes(SpatialAttention()) == {"conv.weight": (1, 2, 7, 7)}
    assert shapes(SpatialAttention(3, bias=True)) == {"conv.weight": (1, 2, 3, 3), "conv.bias": (1,)}
    assert shapes(ChannelGate(8, 2)) == {
        "fc1.weight": (2, 8, 1, 1),
        "fc1.bias": (2,),
        "fc2.weight": (8, 2, 1, 1),
        "fc2.bias": (8,),
    }
    assert shapes(ChannelGate(8, bias=False)) == {"fc2.weight": (8, 8, 1, 1)}
    assert shapes(ChannelStats()) == shapes(SpatialGate()) == shapes(PerSampleConv2d()) == {}


def test_modules_equal_their_functions():
    x = randn(3, 8, 6, 5)
    mask = torch.ones(3, 8).bool()
    mask[1, :5] = False
    attention, gate = SpatialAttention(5, bias=True), ChannelGate(8, 2, gate="softmax")
    single = ChannelGate(8, bias=False)
    weight, bias = randn(3, 6, 4, 3, 3), randn(3, 6)
    assert torch.equal(ChannelStats()(x, mask), channel_stats(x, mask))
    assert torch.equal(SpatialGate()(x, x[:, 3:4]), spatial_gate(x, x[:, 3:4]))
    assert torch.equal(attention(x), spatial_attention(x, attention.conv.weight, attention.conv.bias))
    fc1, fc2 = gate.fc1, gate.fc2
    assert torch.equal(gate(x), channel_gate(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, "softmax"))
    assert torch.equal(single(x), channel_gate(x, None, None, single.fc2.weight, None))
    conv = PerSampleConv2d(stride=2, padding=1, groups=2)
    assert torch.equal(conv(x, weight, bias), per_sample_conv2d(x, weight, bias, 2, 1, 1, 2))


def test_channel_gate_loads_torchvisions_squeeze_excitation():
    from torchvision.ops import SqueezeExcitation

    theirs, ours = SqueezeExcitation(8, 2), ChannelGate(8, 2)
    ours.load_state_dict(theirs.state_dict())
    x = randn(3, 8, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_modules_train_in_low_precision():
    for module in (SpatialAttention(3, bias=True), ChannelGate(8, 2), DynamicConv2d(8, 6, 3)):
        module = module.to(torch.bfloat16)
        x = randn(2, 8, 5, 5, dtype=torch.bfloat16).requires_grad_()
        module(x).sum().backward()
        assert x.grad.dtype == torch.bfloat16
        assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in module.parameters())


def dynamic_conv(*arguments, seed=0, **options):
    torch.manual_seed(seed)
    return DynamicConv2d(*arguments, **options)


def mixing_of(layer, x):
    """Return the mixing weights by definition."""
    first, second = layer.attention.fc1, layer.attention.fc2
    features = x.mean((2, 3))
    if first is not None:
        features = torch.relu(features @ first.weight[:, :, 0, 0].T)
    logits = (features @ second.weight[:, :, 0, 0].T + second.bias) / layer.attention.temperature
    return torch.softmax(logits, 1) if layer.attention.routing == "softmax" else torch.sigmoid(logits)


def definition(layer, x):
    """Return the output of a DynamicConv2d written as one convolution a sample."""
    outputs = []
    for sample, mixing in zip(x, mixing_of(layer, x), strict=True):
        weight = (mixing[:, None, None, None, None] * layer.weight).sum(0)
        bias = None if layer.bias is None else (mixing[:, None] * layer.bias).sum(0)
        outputs.append(F.conv2d(sample[None], weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups))
    return torch.cat(outputs)


LAYERS = {
    "defaults": ((8, 6, 3), {}),
    "geometry": ((8, 6, (3, 2), (2, 1), (1, 0), 2, 2, False), {"experts": 3, "temperature": 5.0}),
    "same": ((8, 6, (5, 3)), {"padding": "same", "hidden_channels": 5}),
    "condconv": ((8, 6, 3), {"routing": "sigmoid"}),
    "sigmoid, hidden layer": ((8, 6, 3), {"routing": "sigmoid", "hidden_channels": 2}),
    "one expert": ((8, 6, 1), {"experts": 1}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_dynamic_conv_equals_its_definition_with_gradients(name):
    arguments, options = LAYERS[name]
    layer = dynamic_conv(*arguments, **options)
    twin = copy.deepcopy(layer)
    x = randn(3, 8, 9, 7).requires_grad_()
    x_twin = x.detach().clone().requires_grad_()
    y, expected = layer(x), definition(twin, x_twin)
    torch.testing.assert_close(y, expected)
    grad = randn(*y.shape, seed=5)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, x_twin.grad, rtol=1e-4, atol=1e-5)
    for (parameter, value), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, rtol=1e-4, atol=1e-5, msg=parameter)
        assert options.get("experts") == 1 or value.grad.abs().sum() > 0, parameter


def test_dynamic_conv_takes_a_given_mixing():
    layer, x = dynamic_conv(8, 6, 3), randn(3, 8, 5, 5)
    second = torch.tensor([0.0, 1, 0, 0]).expand(3, 4)
    torch.testing.assert_close(layer(x, second), F.conv2d(x, layer.weight[1], layer.bias[1]))


def test_dynamic_conv_state_dict_names_are_the_documented_ones():
    assert shapes(DynamicConv2d(8, 6, (3, 5), groups=2)) == {
        "weight": (4, 6, 4, 3, 5),
        "bias": (4, 6),
        "attention.fc1.weight": (3, 8, 1, 1),
        "attention.fc2.weight": (4, 3, 1, 1),
        "attention.fc2.bias": (4,),
        "attention.temperature": (),
    }
    assert shapes(DynamicConv2d(8, 6, 1, bias=False, experts=2, routing="sigmoid")) == {
        "weight": (2, 6, 8, 1, 1),
        "attention.fc2.weight": (2, 8, 1, 1),
        "attention.fc2.bias": (2,),
        "attention.temperature": (),
    }


def test_dynamic_conv_loads_public_state_dicts():
    theirs = {
        "attention.fc1.weight": randn(2, 8, 1, 1),
        "attention.fc2.weight": randn(4, 2, 1, 1),
        "attention.fc2.bias": randn(4),
        "weight": randn(4, 6, 8, 3, 3),
        "bias": randn(4, 6),
    }
    layer = DynamicConv2d(8, 6, 3, hidden_channels=2, temperature=7.0)
    layer.load_state_dict(theirs)
    assert layer.attention.temperature == 7
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("channels", [3, 8])
def test_public_weights_compute_the_same_at_the_temperature_they_were_trained_at(channels):
    theirs, x = written_elsewhere.DynamicConv(channels, 6, 3, padding=1), randn(4, channels, 9, 7)
    theirs.attention.fc2.weight.data *= 20
    hidden = 4 if channels == 3 else None
    for temperature in (34, 1):
        layer = DynamicConv2d(channels, 6, 3, padding=1, hidden_channels=hidden, temperature=temperature)
        layer.load_state_dict(theirs.state_dict())
        same = torch.allclose(layer(x), theirs(x), atol=1e-5)
        assert same == (temperature == 34)


@pytest.mark.parametrize("groups", [1, 4])
def test_each_expert_starts_as_a_conv_would(groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3, groups=groups)
    layer = dynamic_conv(64, 128, 3, groups=groups, experts=5)
    bound = conv.weight[0].numel() ** -0.5
    for _ in range(2):
        assert layer.weight.flatten(1).std(1).tolist() == pytest.approx([conv.weight.std().item()] * 5, rel=0.02)
        assert layer.bias.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        for parameter in (layer.weight, layer.bias):
            assert 0.98 * bound < parameter.abs().max().item() <= bound * (1 + 1e-6)
        before = layer.weight.detach().clone()
        layer.reset_parameters()
        assert not torch.equal(layer.weight, before)


def test_reset_parameters_completes_a_layer_made_on_the_meta_device():
    layer = DynamicConv2d(8, 6, 3, temperature=9.0, device="meta").to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.constant_(parameter, float("nan"))
    layer.attention.temperature.fill_(float("nan"))
    layer.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert layer.attention.temperature == 9


TEMPERED = {"images": DynamicConv2d, "signals": DynamicConv1d, "four attentions": ODConv2d}


@pytest.fixture
def garbage(monkeypatch):
    """Let memory that `to_empty` makes hold what no layer may compute with."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **where: torch.full_like(tensor, 77, **where))


# each layer of kernels.modules with parameters, in each form that has other buffers
MADE = {
    "DynamicConv2d": lambda **made: DynamicConv2d(4, 6, 3, **made),
    "DynamicConv1d": lambda **made: DynamicConv1d(4, 6, 3, **made),
    "ExpertAttention": lambda **made: ExpertAttention(4, 3, **made),
    "ODConv2d": lambda **made: ODConv2d(4, 6, 3, **made),
    "OmniDimensionalAttention": lambda **made: OmniDimensionalAttention(4, 6, 3, **made),
    "ModulatedConv2d": lambda **made: ModulatedConv2d(4, 6, 3, 5, **made),
    "ModulatedConv2d, up": lambda **made: ModulatedConv2d(4, 6, 3, 5, upsample=True, **made),
    "ModulatedConv2d, down": lambda **made: ModulatedConv2d(4, 6, 3, 5, downsample=True, **made),
    "CBAM": lambda **made: CBAM(4, 2, **made),
    "ECA": lambda **made: ECA(4, **made),
    "SpatialAttention": lambda **made: SpatialAttention(bias=True, **made),
    "ChannelGate": lambda **made: ChannelGate(4, 2, **made),
}
every_layer = pytest.mark.parametrize("layer", MADE)


def test_every_layer_with_parameters_is_looked_at():
    without = {"ChannelStats", "PerSampleConv1d", "PerSampleConv2d", "SpatialGate", "anneal_temperature"}
    assert {name.split(",")[0] for name in MADE} == set(modules.__all__) - without


@every_layer
@pytest.mark.parametrize("size", [0, -1, 2.5, None, "4"])
def test_every_size_of_a_layer_is_checked(layer, size):
    kind = getattr(modules, layer.split(",")[0])
    usual = {"in_channels": 4, "out_channels": 6, "channels": 4, "kernel_size": 3, "style_dim": 5, "groups": 1}
    usual |= {"reduction_ratio": 2, "hidden_channels": 2, "experts": 3, "min_channels": 16}
    sizes = usual.keys() & inspect.signature(kind).parameters.keys()
    for name in sizes:
        if (name, size) in {("hidden_channels", 0), ("hidden_channels", None), ("kernel_size", None)}:
            continue  # no hidden layer, or the size that is left out
        given = {other: usual[other] for other in sizes} | {name: size}
        with pytest.raises(ValueError, match=rf"^{name} must be "):
            kind(**given)


@pytest.mark.parametrize("kind", [DynamicConv2d, ODConv2d, OmniDimensionalAttention])
def test_groups_divide_the_channels(kind):
    with pytest.raises(ValueError, match="groups must divide in_channels=8 and out_channels=8, got 3"):
        kind(8, 8, 3, groups=3)


@every_layer
@pytest.mark.parametrize("way", ["made there", "made there by a keyword", "moved there"])
def test_a_layer_that_was_on_the_meta_device_is_completed_by_reset_parameters(layer, way, garbage):
    usual = MADE[layer]()
    with torch.device("meta" if way == "made there" else "cpu"):
        there = MADE[layer](**{"device": "meta"} if way == "made there by a keyword" else {}).to("meta")
    assert all(tensor.is_meta for tensor in there.state_dict().values())
    there.to_empty(device="cpu")
    for module in there.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not any((parameter == 77).any() for parameter in there.parameters())
    wanted, found = dict(usual.named_buffers()), dict(there.named_buffers())
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@every_layer
def test_a_layer_made_in_a_dtype_is_the_layer_cast_to_it(layer):
    made, cast = MADE[layer](dtype=torch.float64), MADE[layer]().double()
    made.load_state_dict(cast.state_dict())
    dtypes = {name: tensor.dtype for name, tensor in cast.state_dict().items() if not name.endswith("temperature")}
    assert {name: made.state_dict()[name].dtype for name in dtypes} == dtypes
    assert torch.float64 in dtypes.values()


def without_temperature(layer):
    return {name: value for name, value in layer.state_dict().items() if not name.endswith("temperature")}


@pytest.mark.parametrize("kind", TEMPERED)
@pytest.mark.parametrize("way", ["to_empty", "assigned", "to_empty of a real layer", "moved"])
def test_a_temperature_that_a_state_dict_lacks_is_the_constructors_or_the_schedules(kind, way, garbage):
    given = without_temperature(TEMPERED[kind](4, 5, 3))
    with torch.device("meta" if way in ("to_empty", "assigned") else "cpu"):
        layer = nn.Sequential(TEMPERED[kind](4, 5, 3, temperature=9.0))
    wanted = 9
    if way in ("to_empty of a real layer", "moved"):
        wanted = anneal_temperature(layer, 5)
    layer = layer.double() if way == "moved" else layer if way == "assigned" else layer.to_empty(device="cpu")
    if way != "assigned":
        assert layer[0].attention.temperature == wanted
        assert way == "moved" or (layer[0].weight == 77).all()
    layer[0].load_state_dict(given, strict=True, assign=way == "assigned")
    assert layer[0].attention.temperature.device.type == "cpu"
    assert layer[0].attention.temperature == wanted


class OpDtypes(TorchDispatchMode):
    """Collects the dtypes of x, experts and mixing that the op is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "polychrome::dynamic_conv2d":
            self.seen.append(tuple(argument.dtype for argument in args[:3]))
        return func(*args, **(kwargs or {}))


def test_autocast_keeps_the_mixing_weights_in_float32():
    layer, x = dynamic_conv(8, 6, 3), randn(3, 8, 9, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), OpDtypes() as dtypes:
        y = layer(x)
        mixing = layer.attention(x)
    torch.testing.assert_close(mixing, mixing_of(layer, x))
    assert dtypes.seen == [(torch.bfloat16, torch.bfloat16, torch.float32)]
    assert y.dtype == torch.bfloat16


def test_attention_runs_on_the_meta_device():
    mixing = DynamicConv2d(8, 6, 3, device="meta").attention(torch.empty(3, 8, 9, 7, device="meta"))
    assert (mixing.shape, mixing.dtype, mixing.device.type) == ((3, 4), torch.float32, "meta")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_mixing_weights_are_wide_in_other_dtypes(dtype):
    layer, x = dynamic_conv(8, 6, 3).to(dtype), randn(3, 8, 9, 7, dtype=dtype)
    mixing = layer.attention(x)
    assert mixing.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(mixing, mixing_of(layer.double(), x.double()).to(mixing.dtype))
    assert layer.to(dtype)(x).dtype == dtype


def test_annealing_falls_linearly_and_reaches_every_layer():
    model = nn.Sequential(DynamicConv2d(3, 4, 3), nn.ModuleDict({"deep": DynamicConv2d(4, 4, 1)}), nn.Conv2d(4, 4, 1))
    temperatures = [module.attention.temperature for module in (model[0], model[1]["deep"])]
    for epoch, wanted in [(0, 30.0), (1, 27.1), (2.5, 22.75), (9, 3.9), (10, 1.0), (50, 1.0)]:
        assert anneal_temperature(model, epoch) == pytest.approx(wanted)
        assert [t.item() for t in temperatures] == pytest.approx([wanted] * 2)
    assert model[0].attention.temperature is temperatures[0]
    assert [anneal_temperature(model, epoch, 11, start=34) for epoch in (0, 1, 11)] == [34, 31, 1]


def test_annealing_recompiles_nothing():
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    layer, x = dynamic_conv(8, 6, 3), randn(3, 8, 9, 7)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    outputs = []
    for epoch in (0, 3, 10):
        anneal_temperature(layer, epoch)
        outputs.append(compiled(x))
        torch.testing.assert_close(outputs[-1], definition(layer, x))
        layer.zero_grad()
        outputs[-1].sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
    assert backend.frame_count == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), layer(x))
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3


def test_checkpoints_copies_and_pickles_keep_the_temperature():
    layer, x = dynamic_conv(8, 6, 3), randn(3, 8, 9, 7)
    anneal_temperature(layer, 4)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    resumed = DynamicConv2d(8, 6, 3)
    resumed.load_state_dict(torch.load(buffer))
    for other in (resumed, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.attention.temperature.item() == pytest.approx(18.4)
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(8, 6, (3, 5), 2, (1, 2), (2, 1), 2, bias=False),
        nn.Conv2d(8, 6, 5, padding="same").double().eval(),
    ],
)
def test_a_layer_made_from_a_conv_computes_what_the_conv_does(conv):
    layer = DynamicConv2d.from_conv(conv, experts=3, temperature=2.0)
    x = randn(3, 8, 9, 11, dtype=conv.weight.dtype)
    torch.testing.assert_close(layer(x), conv(x))
    assert layer.weight.shape == (3, *conv.weight.shape)
    assert (layer.bias is None) == (conv.bias is None)
    assert layer.training == conv.training
    assert layer.attention.temperature == 2
    layer.weight.data.zero_()
    assert conv.weight.abs().sum() > 0


def test_repr_shows_the_settings():
    layer = DynamicConv2d(8, 6, 3, padding=1, bias=False)
    assert layer.extra_repr() == (
        "8, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, experts=4, bias=False"
    )
    assert layer.attention.extra_repr() == "routing='softmax'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts must be an int, at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be an int, at least 1, got 0"),
        ({"groups": 4}, "groups must divide in_channels=8 and out_channels=6, got 4"),
        ({"kernel_size": (3, 0)}, r"kernel_size must be .* at least 1, got \(3, 0\)"),
        ({"padding": "reflect"}, "padding must be .* got 'reflect'"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"routing": "topk"}, "routing must be 'softmax' or 'sigmoid', got 'topk'"),
        ({"hidden_channels": -1}, "hidden_channels must be an int, at least 0, got -1"),
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"temperature": float("nan")}, "temperature must be a positive number, got nan"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicConv2d(**{"in_channels": 8, "out_channels": 6, "kernel_size": 3, **options})


def test_bad_calls_are_named():
    layer = DynamicConv2d(8, 6, 3)
    with pytest.raises(ValueError, match=r"x must be \[batch, channels=8, height, width\], got \[8, 9, 7\]"):
        layer(randn(8, 9, 7))
    with pytest.raises(ValueError, match=r"x must be \[batch, channels=8, height, width\], got \[2, 3, 9, 7\]"):
        layer(randn(2, 3, 9, 7))
    for arguments, options in [((-1,), {}), ((0, 0), {}), ((0,), {"start": 0.0}), ((0,), {"end": -1.0})]:
        with pytest.raises(ValueError, match="must be"):
            anneal_temperature(layer, *arguments, **options)


def test_a_model_with_dynamic_convolutions_converts_to_channels_last():
    layer, x = dynamic_conv(8, 6, 3), randn(3, 8, 9, 7)
    expected = layer(x).detach()
    model = nn.Sequential(layer).to(memory_format=torch.channels_last)
    assert model[0].weight.shape == (4, 6, 8, 3, 3)
    y = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert model[0].weight.grad.shape == (4, 6, 8, 3, 3)
    assert model.double()[0].weight.dtype == torch.float64


SIGNALS = {
    "plain": {"padding": 1},
    "left and right": {"padding": (2, 0), "padding_mode": "replicate"},
    "strided, dilated, groups": {"stride": 2, "dilation": 2, "groups": 2, "bias": False},
    "same": {"padding": "same", "routing": "sigmoid"},
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_layer_for_signals_is_its_function_with_an_attention_over_the_length(name):
    torch.manual_seed(0)
    layer = DynamicConv1d(6, 4, 3, experts=3, **SIGNALS[name])
    x = randn(5, 6, 20)
    mixing = layer.attention(x[:, :, None])
    expected = dynamic_conv1d(x, layer.weight, mixing, layer.bias, *layer.geometry, padding_mode=layer.padding_mode)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x, mixing), expected)
    layer(x).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_a_layer_for_signals_has_the_names_and_the_temperature_of_the_layer_for_images():
    one, two = DynamicConv1d(6, 4, 3), DynamicConv2d(6, 4, 3)
    assert list(one.state_dict()) == list(two.state_dict())
    assert one.weight.shape == (4, 4, 6, 3)
    anneal_temperature(nn.Sequential(one), 0)
    assert one.attention.temperature == 30
    assert repr(DynamicConv1d(6, 4, 3, padding=(2, 0))).startswith(
        "DynamicConv1d(\n  6, 4, kernel_size=(3,), stride=(1,), padding=(2, 0), dilation=(1,), groups=1, experts=4"
    )


def test_a_layer_for_signals_loads_an_attention_of_convolutions_of_signals():
    trained, layer = DynamicConv1d(6, 4, 3), DynamicConv1d(6, 4, 3)
    public = {
        name: value.squeeze(3) if name.endswith(("fc1.weight", "fc2.weight")) else value
        for name, value in trained.state_dict().items()
    }
    layer.load_state_dict(public)
    assert public["attention.fc1.weight"].dim() == 3
    x = randn(5, 6, 20)
    torch.testing.assert_close(layer(x), trained(x), rtol=0, atol=0)


@pytest.mark.parametrize("conv", [nn.Conv1d(6, 4, 3, padding=1), nn.Conv1d(6, 4, 5, 2, 2, 1, 2, False, "circular")])
def test_a_layer_made_from_a_conv_of_signals_computes_what_the_conv_does(conv):
    x = randn(5, 6, 20)
    torch.testing.assert_close(DynamicConv1d.from_conv(conv)(x), conv(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"conv must be a plain nn\.Conv1d"):
        DynamicConv1d.from_conv(nn.Conv2d(6, 4, 3))
    with pytest.raises(ValueError, match=r"conv must be a plain nn\.Conv2d"):
        DynamicConv2d.from_conv(conv)


def test_a_filter_for_each_signal_is_its_function():
    x, weight, bias = randn(3, 4, 20), randn(3, 6, 2, 5, seed=1), randn(3, 6, seed=2)
    layer = PerSampleConv1d(2, (1, 3), groups=2, padding_mode="reflect")
    expected = per_sample_conv1d(x, weight, bias, 2, (1, 3), groups=2, padding_mode="reflect")
    torch.testing.assert_close(layer(x, weight, bias), expected)
    assert repr(layer) == ("PerSampleConv1d(stride=2, padding=(1, 3), dilation=1, groups=2, padding_mode='reflect')")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerSampleConv1d(stride=(1, 2)), r"stride must be an int, at least 1, got \(1, 2\)"),
        (lambda: PerSampleConv1d(padding=(1, 2, 3)), r"padding must be an int or two \(left, right\), at least 0"),
        (lambda: DynamicConv1d(6, 4, (3, 3)), r"kernel_size must be an int, at least 1, got \(3, 3\)"),
        (lambda: DynamicConv1d(6, 4, 3, groups=4), "groups must divide in_channels=6 and out_channels=4, got 4"),
        (
            lambda: DynamicConv1d(6, 4, 3)(randn(2, 6, 5, 5)),
            r"x must be \[batch, channels=6, length\], got \[2, 6, 5, 5\]",
        ),
        (
            lambda: DynamicConv1d(6, 4, 3)(randn(6, 20)),
            r"x must be \[batch, channels=6, length\], got \[6, 20\]",
        ),
    ],
)
def test_bad_settings_and_calls_of_layers_for_signals_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_interpreter)])
def test_a_layer_for_signals_converted_to_channels_last_computes_the_same(backend):
    layer = DynamicConv1d(6, 4, 3, padding=1)
    x = randn(5, 6, 20)
    expected = layer(x)
    with use_backend(backend):
        torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x), expected, rtol=1e-5, atol=1e-5)
