"""`kernels.fuse` on models of timm and torchvision."""

import copy

import pytest
import torch
from torch import nn

from polychrome.kernels import fuse, use_backend
from polychrome.kernels.fuse import Swap
from tests.kernels.fused import OpsCalled, assert_alike, assert_equal_training, outcome, twins
from tests.kernels.oracle import randn


def test_efficientnet_with_conditional_convolutions_is_equal_in_every_gradient():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_cc_b0_4e", num_classes=10)
    fused, report = assert_equal_training(model, randn(2, 3, 40, 40))
    counts = {module: sum(s.module == module for s in report.swapped) for module in ("CondConv2d", "SqueezeExcite")}
    assert counts == {"CondConv2d": 24, "SqueezeExcite": 16}
    assert report.left == ()
    assert list(fused.state_dict()) == list(model.state_dict())
    model.load_state_dict(fused.state_dict(), strict=True)
    fused.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.slow
def test_efficientnet_with_conditional_convolutions_has_the_same_logits_in_float32_and_trains():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_cc_b0_4e", num_classes=10)
    nn.init.normal_(model.classifier.weight, std=0.2)  # timm's start gives logits of 1e-5, which anything equals
    x = randn(3, 3, 64, 64)
    with torch.no_grad():
        for _ in range(20):
            model(x)  # the running statistics, without which the activations fade away
    model, fused, _ = twins(model.eval())
    with torch.no_grad():
        logits = model(x)
        assert logits.abs().max() > 0.5
        for backend in ("auto", "reference"):
            with use_backend(backend):
                torch.testing.assert_close(fused(x), logits, rtol=0, atol=1e-4)
    losses = []
    for m in (model.train(), fused.train()):
        optimizer = torch.optim.SGD(m.parameters(), 0.01, momentum=0.9)
        for _ in range(2):
            loss = nn.functional.cross_entropy(m(x), torch.tensor([1, 2, 3]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-3)
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(
    ("library", "name", "op", "count"),
    [
        ("timm", "mobilenetv3_small_050", "channel_scale", 9),
        pytest.param("timm", "regnety_002", "channel_gate", 13, marks=pytest.mark.slow),
        pytest.param("torchvision", "efficientnet_b0", "channel_scale", 16, marks=pytest.mark.slow),
        ("torchvision", "mobilenet_v3_small", "channel_scale", 9),
        ("torchvision", "regnet_y_400mf", "channel_gate", 16),
    ],
)
def test_squeeze_excitation_of_other_libraries_is_found_and_equal(library, name, op, count):
    if library == "timm":
        model = pytest.importorskip("timm", reason="timm is not installed").create_model(name, num_classes=5)
    else:
        model = pytest.importorskip("torchvision").models.get_model(name, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    _, report = assert_equal_training(model, randn(2, 3, 40, 40))
    assert {s.op for s in report.swapped} == {op}
    assert len(report.swapped) == count
    assert report.left == ()


@pytest.mark.parametrize(
    "activation",
    [
        lambda: nn.Hardtanh(0, 20),
        lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        lambda: nn.Sequential(nn.ReLU(), nn.Dropout(1e-4)),
        lambda: nn.Threshold(0.01, 0),
    ],
    ids=["clipped", "dropout", "seldom dropout", "threshold"],
)
def test_an_activation_that_is_nearly_a_relu_keeps_its_layers(activation):
    misc = pytest.importorskip("torchvision").ops.misc
    torch.manual_seed(0)
    model, fused, report = twins(nn.Sequential(misc.SqueezeExcitation(16, 8, activation=activation)))
    assert [swap.op for swap in report.swapped] == ["channel_scale"]
    x = 50 * randn(4, 16, 8, 8) + 30
    for training in (True, False):
        torch.manual_seed(1)
        expected = outcome(model.train(training), x)
        torch.manual_seed(1)
        with use_backend("reference"):
            assert_alike(expected, outcome(fused.train(training), x), 1e-5)


def test_timms_channel_attentions_are_swapped_and_its_spatial_ones_divide_ties_by_another_rule():
    layers = pytest.importorskip("timm.layers.cbam", reason="timm is not installed")
    model = nn.Sequential(layers.CbamModule(8, rd_channels=2), layers.LightCbamModule(8, rd_channels=2))
    _, report = assert_equal_training(model, randn(3, 8, 9, 7))
    assert report.swapped == (
        Swap("0.channel", "ChannelAttn", "channel_scale"),
        Swap("1.channel", "LightChannelAttn", "channel_scale"),
    )
    assert [left.path for left in report.left] == ["0.spatial", "1.spatial"]
    reason = "not what channel_stats, spatial_gate computes: with ties, zeros and constants the gradient of the input"
    assert report.left[0].reason.startswith(reason)


@pytest.mark.parametrize("options", [{}, {"padding": "same", "stride": 2}, {"groups": 6, "bias": True, "dilation": 2}])
@pytest.mark.parametrize("size", [(8, 7), (5, 10)])
def test_every_geometry_of_timms_cond_conv_is_equal(options, size):
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    layer = layers.CondConv2d(6, 12, 3, num_experts=3, **options)
    assert_equal_training(layer, randn(3, 6, *size), torch.rand(3, 3))


def test_cond_conv_is_the_op_on_a_cpu_where_that_is_faster():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    layer = layers.CondConv2d(256, 256, 3, padding=1)
    fuse(layer)
    with torch.no_grad():
        with OpsCalled() as few:
            layer(randn(2, 256, 4, 4), torch.rand(2, 4))
        with OpsCalled() as many:
            layer(randn(16, 256, 4, 4), torch.rand(16, 4))
    assert (few.names, many.names) == (set(), {"dynamic_conv2d"})


def test_a_forward_changed_on_timms_class_after_fuse_is_what_is_computed(monkeypatch):
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    layer, x, mix = layers.CondConv2d(6, 8, 3), randn(2, 6, 7, 7), torch.rand(2, 4)
    assert fuse(layer).swapped
    forward = layers.CondConv2d.forward
    monkeypatch.setattr(layers.CondConv2d, "forward", lambda self, x, mix: 2 * forward(self, x, mix))
    with use_backend("reference"):
        torch.testing.assert_close(layer(x, mix), 2 * forward(layer, x, mix))


class Halved(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 0.5 * self.inner(x)


class NotIdentity(nn.Identity):
    def forward(self, x):
        return 0.5 * x


class NotMean(nn.AdaptiveAvgPool2d):
    def forward(self, x):
        return 0.5 * super().forward(x)


def known_attentions():
    """Return a module of each class of squeeze-excitation that is known by its name."""
    misc = pytest.importorskip("torchvision").ops.misc
    layers = pytest.importorskip("timm.layers.squeeze_excite", reason="timm is not installed")
    from timm.models._efficientnet_blocks import SqueezeExcite

    made = misc.SqueezeExcitation(8, 4), layers.SEModule(8), layers.EffectiveSEModule(8), SqueezeExcite(8)
    return [each.eval() for each in made]


def changed_children():
    """Yield known modules, each with one child changed, and what was done to which."""
    for module in known_attentions():
        for name, child in module.named_children():
            others = [Halved(child)]
            others += [NotIdentity()] if isinstance(child, nn.Identity) else []
            if isinstance(child, nn.AdaptiveAvgPool2d):
                others += [NotMean(1), nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool2d((1, 1))]
            for other in others:
                changed = copy.deepcopy(module)
                setattr(changed, name, other)
                yield changed, f"{type(module).__name__}.{name} = {other}"


def test_every_submodule_of_a_known_class_is_looked_at():
    x = randn(2, 8, 5, 4)
    with use_backend("reference"):
        for module in known_attentions():
            assert_alike(outcome(module, x), outcome(twins(module)[1], x), 1e-5)
        cases = list(changed_children())
        assert len(cases) >= 5 + 5 + 2 + 4 + 4
        for module, case in cases:
            module, fused, _ = twins(module)
            torch.testing.assert_close(fused(x), module(x), msg=case)
