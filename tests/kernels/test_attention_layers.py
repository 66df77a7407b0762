"""CBAM and ECA as layers, against the public formulas, with public weights."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from polychrome.kernels import fuse
from polychrome.kernels.modules import CBAM, ECA, SpatialAttention
from tests.grids import grid, usual
from tests.kernels import written_elsewhere
from tests.kernels.fused import assert_alike, outcome
from tests.kernels.oracle import assert_one_compilation, randn, rms_ratio

OFFICIAL_NAMES = [
    "ChannelGate.mlp.1.weight",
    "ChannelGate.mlp.1.bias",
    "ChannelGate.mlp.3.weight",
    "ChannelGate.mlp.3.bias",
    "SpatialGate.spatial.conv.weight",
    "SpatialGate.spatial.bn.weight",
    "SpatialGate.spatial.bn.bias",
    "SpatialGate.spatial.bn.running_mean",
    "SpatialGate.spatial.bn.running_var",
    "SpatialGate.spatial.bn.num_batches_tracked",
]
ties = randn(3, 8, 7, 6, dtype=torch.float64).round()


class WithoutNorm(written_elsewhere.GatedCBAM):
    """CBAM whose map is not normalised."""

    def __init__(self, planes):
        super().__init__(planes)
        self.SpatialGate.spatial.bn = nn.Identity()


class ChannelsOnly(written_elsewhere.GatedCBAM):
    """CBAM's first half."""

    def __init__(self, planes):
        super().__init__(planes)
        self.SpatialGate = nn.Identity()


PAIRS = {
    "normalised": (written_elsewhere.GatedCBAM, lambda: CBAM(8, 4)),
    "not normalised": (WithoutNorm, lambda: CBAM(8, 4, batch_norm=False)),
    "channels only": (ChannelsOnly, lambda: CBAM(8, 4, spatial=False)),
    "neighbours": (lambda _: written_elsewhere.ECA(3), lambda: ECA(8, 3)),
}


def pair(name):
    torch.manual_seed(0)
    public, layer = PAIRS[name][0](8), PAIRS[name][1]()
    with torch.no_grad():
        for parameter in public.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    layer.load_state_dict(public.state_dict())
    return public.double(), layer.double()


@grid(
    name=list(PAIRS), training=[True, False], layout=[torch.contiguous_format, torch.channels_last], tied=[False, True]
)
def test_layers_load_public_weights_and_train_the_same(name, training, layout, tied):
    public, layer = (each.train(training) for each in pair(name))
    x = (ties if tied else randn(3, 8, 7, 6, dtype=torch.float64)).to(memory_format=layout)
    assert_alike(outcome(public, x), outcome(layer, x), 1e-9)
    assert_alike(dict(public.named_buffers()), dict(layer.named_buffers()), 1e-9)
    assert layer(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("flipped", [True, False])
def test_the_authors_spatial_weights_are_those_of_spatial_attention_with_the_maps_flipped(flipped):
    public, _ = pair("not normalised")
    theirs = public.SpatialGate.spatial.conv.weight
    layer = SpatialAttention(7).double()
    layer.load_state_dict({"conv.weight": theirs.flip(1) if flipped else theirs})
    apart = (layer(ties) - public.SpatialGate(ties)).abs().max().item()
    assert apart < 1e-12 if flipped else apart > 0.1


def test_state_dict_names_are_the_authors():
    assert list(CBAM(32).state_dict()) == OFFICIAL_NAMES
    assert list(CBAM(32, spatial=False).state_dict()) == OFFICIAL_NAMES[:4]
    assert list(ECA(32).state_dict()) == ["conv.weight"]


@pytest.mark.parametrize(
    ("channels", "size"), [(1, 1), (8, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_the_size_of_the_neighbourhood_is_the_papers(channels, size):
    timm = pytest.importorskip("timm.layers.eca", reason="timm is not installed")
    kernel = ECA(channels).conv.weight
    assert kernel.shape == (1, 1, size)
    if channels > 1:
        assert timm.EcaModule(channels).conv.weight.shape == (1, 1, size)


@grid(name=list(PAIRS), dtype=[torch.bfloat16, torch.float16])
def test_gates_stay_wide_in_low_precision(name, dtype):
    _, layer = pair(name)
    layer.eval()
    x = randn(3, 8, 7, 6, dtype=dtype)
    low = copy.deepcopy(layer).to(dtype)
    exact = copy.deepcopy(low).double()(x.double())
    assert low(x).dtype == dtype
    assert rms_ratio(low(x), exact) < {torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    with torch.autocast("cpu", dtype):
        y = layer.float()(x.float())
    assert y.dtype == torch.float32
    assert rms_ratio(y, layer.double()(x.double())) < (1e-2 if name == "not normalised" else 1e-5)


@pytest.mark.parametrize("name", usual(PAIRS, "normalised", "neighbours"))
def test_first_and_second_derivatives_are_those_of_differences(name):
    _, layer = pair(name)
    layer.eval()
    x = randn(2, 8, 3, 2, dtype=torch.float64).requires_grad_()
    assert gradcheck(layer, x)
    assert gradgradcheck(layer, x)


@pytest.mark.parametrize("name", PAIRS)
def test_layers_with_hooks_are_called(name):
    _, layer = pair(name)
    layer.eval()
    x, seen = randn(2, 8, 6, 5, dtype=torch.float64), []
    expected = layer(x)
    inner = [each for each in layer.modules() if isinstance(each, nn.Linear | nn.Conv1d | nn.Conv2d)]
    for each in inner:
        each.register_forward_hook(lambda module, *_: seen.append(module))
    torch.testing.assert_close(layer(x), expected)
    assert {id(each) for each in seen} == {id(each) for each in inner}


@pytest.mark.parametrize("name", usual(PAIRS, "normalised", "neighbours"))
def test_one_compilation_serves_every_batch(name):
    _, layer = pair(name)
    layer.eval()
    assert_one_compilation(lambda x: layer(x), lambda batch: [randn(batch, 8, 7, 6, dtype=torch.float64)], (0,))


def test_layers_of_this_package_are_left_alone():
    report = fuse(nn.Sequential(CBAM(8, 4), ECA(8)))
    assert [left.reason for left in report.left] == ["already calls an op of kernels"] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CBAM(8), "reduction_ratio must be at most channels=8, got 16"),
        (lambda: CBAM(0, 1), "channels must be an int, at least 1, got 0"),
        (lambda: CBAM(8, 0), "reduction_ratio must be an int, at least 1, got 0"),
        (lambda: CBAM(8, 4, kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: ECA(8, 2), "kernel_size must be odd, got 2"),
        (lambda: ECA(0), "channels must be an int, at least 1, got 0"),
        (lambda: ECA(8, 0), "kernel_size must be an int, at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("layer", [CBAM(8, 4), ECA(8)], ids=["CBAM", "ECA"])
def test_bad_calls_are_named(layer):
    with pytest.raises(ValueError, match=r"x must be \[batch, channels, height, width\], got \[8, 6, 5\]"):
        layer(randn(8, 6, 5))
    with pytest.raises(TypeError, match="x must be float32, float64, float16 or bfloat16, got int64"):
        layer(torch.zeros(2, 8, 6, 5, dtype=torch.int64))


def test_maxima_need_a_pixel():
    with pytest.raises(ValueError, match=r"x must have at least one pixel, got \[2, 8, 0, 5\]"):
        CBAM(8, 4)(randn(2, 8, 0, 5))
