"""ODConv: the layer against its authors' formula, without the kernels of all samples and experts."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from polychrome.kernels import fuse
from polychrome.kernels.modules import ODConv2d, anneal_temperature
from polychrome.kernels.omni_dimensional import omni_dimensional_conv2d
from tests.grids import grid, usual
from tests.kernels.fused import assert_alike, assert_equal_training, outcome
from tests.kernels.oracle import assert_one_compilation, randn, rms_ratio
from tests.kernels.written_elsewhere import OfficialODConv

LAYERS = {
    "3x3": ((6, 8, 3), {"padding": 1}),
    "strided": ((6, 8, 3), {"stride": 2, "padding": 1}),
    "dilated, groups": ((6, 8, 3), {"dilation": 2, "groups": 2}),
    "depthwise": ((6, 6, 3), {"padding": 1, "groups": 6}),
    "1x1": ((6, 8, 1), {}),
    "one expert": ((6, 8, 3), {"padding": 1, "experts": 1}),
    "1x1, one expert": ((6, 8, 1), {"experts": 1}),
}


def pair(name):
    """Return the public layer and ours with its weights, in float64."""
    sizes, options = LAYERS[name]
    torch.manual_seed(0)
    public, layer = OfficialODConv(*sizes, **options), ODConv2d(*sizes, **options)
    with torch.no_grad():
        for parameter in public.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    wanted = public.state_dict()
    assert set(layer.state_dict()) - set(wanted) == {"attention.temperature"}
    layer.load_state_dict(wanted)
    return public.double(), layer.double()


@grid(name=list(LAYERS), training=[True, False], layout=[torch.contiguous_format, torch.channels_last])
def test_the_layer_loads_public_weights_and_trains_the_same(name, training, layout):
    public, layer = (each.train(training) for each in pair(name))
    x = randn(3, 6, 8, 9, dtype=torch.float64).to(memory_format=layout)
    expected, found = outcome(public, x), outcome(layer, x)
    assert_alike(expected, found, 1e-9)
    buffers = dict(layer.named_buffers())
    assert buffers.pop("attention.temperature") == 1
    assert_alike(dict(public.named_buffers()), buffers, 1e-9)
    assert layer(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", LAYERS)
def test_public_layers_are_recognised_and_train_the_same(name):
    public, _ = pair(name)
    fused, report = assert_equal_training(nn.Sequential(public), randn(3, 6, 8, 9))
    assert [(swap.path, swap.op) for swap in report.swapped] == [("0", "dynamic_conv2d")]
    assert report.left == ()
    fused[0].attention.temperature = 3.0
    public.attention.temperature = 3.0
    x = randn(3, 6, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(fused.train()(x), public.train()(x))


def test_an_attention_that_gives_something_else_after_the_swap_is_named():
    public, _ = pair("3x3")
    fuse(public)
    public.attention = nn.Identity()
    with pytest.raises(TypeError, match="attention gave ODConv's four attentions when it was fused"):
        public(randn(3, 6, 8, 9, dtype=torch.float64))


@grid(name=["3x3", "1x1"], dtype=[torch.bfloat16, torch.float16])
def test_low_precision_is_near_the_exact_numbers(name, dtype):
    _, layer = pair(name)
    layer.eval()
    x = randn(3, 6, 8, 9, dtype=dtype)
    low = copy.deepcopy(layer).to(dtype)
    exact = copy.deepcopy(low).double()(x.double())
    assert low(x).dtype == dtype
    assert rms_ratio(low(x), exact) < {torch.bfloat16: 1.5e-2, torch.float16: 3e-3}[dtype]
    with torch.autocast("cpu", dtype):
        y = layer.float()(x.float())
    assert y.dtype == dtype
    assert rms_ratio(y, exact) < {torch.bfloat16: 3e-2, torch.float16: 6e-3}[dtype]


@pytest.mark.parametrize("name", usual(["3x3", "1x1", "one expert", "1x1, one expert"], "1x1", "one expert"))
def test_first_and_second_derivatives_are_those_of_differences(name):
    (_, _, taps), options = LAYERS[name]
    count = options.get("experts", 2)
    doubles = {"dtype": torch.float64}
    given = [
        randn(2, 2, 3, 4, **doubles),
        randn(count, 2, 2, taps, taps, seed=1, **doubles),
        randn(2, 2, seed=2, **doubles),
        randn(2, 2, seed=3, **doubles),
        randn(2, taps * taps, seed=4, **doubles) if taps > 1 else None,
        randn(2, count, seed=5, **doubles) if count > 1 else None,
    ]
    given = [None if each is None else each.requires_grad_() for each in given]
    assert gradcheck(lambda *inputs: omni_dimensional_conv2d(*inputs, padding="same"), given)
    assert gradgradcheck(lambda *inputs: omni_dimensional_conv2d(*inputs, padding="same"), given)


class Largest(TorchDispatchMode):
    """Finds the most values of a tensor that any operator makes."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, torch.Tensor):
                self.values = max(self.values, each.numel())
        return found


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_kernels_of_every_sample_and_expert_are_never_made(kernel_size):
    torch.manual_seed(0)
    layer = ODConv2d(32, 32, kernel_size, padding=kernel_size // 2, experts=4)
    x = randn(6, 32, 5, 5).requires_grad_()
    with Largest() as largest:
        layer(x).sum().backward()
    assert largest.values <= 6 * layer.weight[0].numel()


def test_annealing_reaches_the_four_attentions():
    model = nn.Sequential(ODConv2d(3, 4, 3), ODConv2d(4, 4, 1, temperature=5.0))
    assert model[1].attention.temperature == 5
    assert anneal_temperature(model, 0) == 30
    assert [layer.attention.temperature.item() for layer in model] == [30, 30]
    model[1].reset_parameters()
    assert model[1].attention.temperature == 5
    hot, cold = copy.deepcopy(model[0]).eval(), model[0].eval()
    cold.attention.temperature.fill_(1)
    x = randn(2, 3, 6, 6)
    spread = [layer.attention(x).kernel.std().item() for layer in (hot, cold)]
    assert spread[0] < spread[1]


def test_a_layer_is_completed_after_it_was_made_on_the_meta_device():
    layer = ODConv2d(3, 4, 3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(randn(2, 3, 6, 6)).isfinite().all()
    assert layer.attention.temperature == 1
    assert layer.weight.std() > 0.1


def test_a_layer_converts_to_channels_last():
    layer = ODConv2d(6, 8, 3, padding=1).eval()
    x = randn(2, 6, 8, 9)
    expected = layer(x)
    converted = layer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(converted(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("kernel_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_one_compilation_serves_every_batch(kernel_size):
    layer = ODConv2d(6, 8, kernel_size).eval()
    assert_one_compilation(lambda x: layer(x), lambda batch: [randn(batch, 6, 8, 9)], (0,))


def test_layers_of_this_package_are_left_alone():
    assert [left.reason for left in fuse(nn.Sequential(ODConv2d(6, 8, 3))).left] == ["already calls an op of kernels"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be an int, at least 1, got 0"),
        ({"groups": 4}, "groups must divide in_channels=6 and out_channels=8, got 4"),
        ({"experts": 0}, "experts must be an int, at least 1, got 0"),
        ({"reduction": 0}, "reduction must be above 0 and at most 1, got 0"),
        ({"min_channels": 0}, "min_channels must be an int, at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"padding": -1}, "padding must be an int, a pair of ints or four"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of zeros, reflect, replicate, circular, got 'mirror'"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ODConv2d(**{"in_channels": 6, "out_channels": 8, "kernel_size": 3, **options})


def test_bad_calls_are_named():
    layer = ODConv2d(6, 8, 3).eval()
    with pytest.raises(ValueError, match=r"x must be \[batch, channels=6, height, width\], got \[6, 8, 8\]"):
        layer(randn(6, 8, 8))
    with pytest.raises(ValueError, match=r"x must be \[batch, channels=6, height, width\], got \[2, 5, 8, 8\]"):
        layer(randn(2, 5, 8, 8))
    with pytest.raises(TypeError, match="x must be a tensor, got NoneType"):
        layer(None)
