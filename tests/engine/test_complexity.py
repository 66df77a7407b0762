import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from polychrome import kernels, models
from polychrome.kernels.modules import DynamicConv2d
from polychrome.models import complexity


class TwoConvs(nn.Module):
    """Conv k3 3->8, conv k3 8->16 stride 2 beside a 1x1 shortcut, a hand-made channel gate, a two-layer head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.gate = nn.Conv2d(16, 16, 1)
        self.hidden = nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.first(x).relu_()
        x = self.second(x) + self.shortcut(x)
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(self.hidden(x.mean((2, 3))).relu())


def test_costs_equal_hand_computed_ones():
    costs = complexity.measure(TwoConvs(), channels=3, size=10)
    convs = 100 * 8 * 27 + 25 * 16 * 72 + 25 * 16 * 8
    assert costs.macs == convs + 16 * 16 + 16 * 12 + 12 * 5
    assert costs.flops == 2 * costs.macs
    assert costs.params == (8 * 27 + 8) + (16 * 72 + 16) + (16 * 8 + 16) + (256 + 16) + (16 * 12 + 12) + (12 * 5 + 5)
    outputs = 8 * 100 + 16 * 25 + 16 * 25 + 16 + 12 + 5
    assert costs.activation_mb == pytest.approx(2 * 4 * outputs / 1e6)


def test_depth_counts_the_longest_path_without_gates_shortcuts_and_head():
    assert complexity.measure(TwoConvs(), channels=3, size=10).depth == 2


def test_a_layer_applied_twice_counts_twice_in_the_depth_and_once_among_the_distinct():
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    layers = convolution, nn.ReLU(), convolution, nn.Conv2d(3, 4, 1)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    costs = complexity.measure(model, channels=3, size=8)
    assert (costs.depth, costs.distinct_layers) == (3, 2)


@pytest.mark.parametrize("name", ["dwg_densenet121", "dynamic_cnn_v2", "prism4"])
def test_layers_whose_kernels_are_made_from_the_input_are_distinct_by_what_makes_them(name):
    layers = complexity.path(models.create(name).to("meta").eval(), torch.empty(2, 3, 64, 64, device="meta"))
    assert len(set(layers)) == len(layers)
    assert all(layers), "each has parameters"


def test_a_recurrent_convolution_is_one_layer_however_often_it_is_applied():
    costs = complexity.measure(models.create("rrdb_rnn"), channels=3, size=16)
    assert costs.distinct_layers < costs.depth


class Called(nn.Module):
    """A convolution of ours between two of torch's."""

    def __init__(self, op, weight):
        super().__init__()
        self.op, self.weight = op, nn.Parameter(weight)
        self.before, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.after(self.op(self.before(x), self.weight)).mean((2, 3))


MIXING, KERNELS = torch.ones(2, 3), torch.randn(3, 4, 4, 3, 3)


@pytest.mark.parametrize(
    ("op", "weight"),
    [
        (lambda x, w: kernels.dynamic_conv2d(x, w, MIXING), KERNELS),
        (lambda x, w: kernels.dynamic_conv2d(x, w, MIXING, scale=torch.ones(4), shift=torch.ones(4)), KERNELS),
        (lambda x, w: kernels.dynamic_conv_transpose2d(x, w, MIXING), KERNELS),
        (kernels.per_sample_conv2d, KERNELS[:2]),
        (kernels.per_sample_conv_transpose2d, KERNELS[:2]),
        (torch.conv_transpose2d, KERNELS[0]),
    ],
    ids=["dynamic", "with a normalisation", "transposed dynamic", "per sample", "transposed per sample", "torch's"],
)
def test_every_convolution_is_a_layer_of_the_path(op, weight):
    layers = complexity.path(Called(op, weight), torch.randn(2, 3, 8, 8))
    assert layers == tuple(frozenset([name]) for name in ("before.weight", "weight", "after.weight"))


@pytest.mark.parametrize("masked", [False, True])
def test_means_of_many_channels_are_no_layer(masked):
    with torch.device("meta"):
        stem = models.create("prism4_small", in_channels=48).stem
        x, mask = torch.empty(2, 48, 16, 16), torch.ones(2, 48, dtype=torch.bool)
        model = nn.Module()
        model.stem, model.forward = stem, lambda x: stem(x, mask if masked else None)
        assert complexity.path(model, x) == (frozenset(["stem.weight"]),)


def test_a_folded_network_is_as_deep_as_it_was():
    block = DynamicConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    model = nn.Sequential(*block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    for each in (model, kernels.fold_batch_norm(model)):
        assert complexity.depth(each, torch.randn(2, 3, 8, 8)) == 1


def test_depth_counts_linear_layers_on_tokens():
    class Tokens(nn.Sequential):
        def forward(self, x):
            return super().forward(x.flatten(2).mT).mean(1)

    assert complexity.depth(Tokens(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6)), torch.rand(2, 3, 4, 4)) == 2


@pytest.mark.parametrize(
    ("name", "params", "depth"),
    [
        ("simple_cnn", 139_570, 3),
        ("pool_attention_cnn", 139_299, 5),
        ("attention_cnn", 446_868, 4),
        pytest.param("resnet34", 21_310_322, 33, marks=pytest.mark.slow),
    ],
)
def test_report_a_systems(name, params, depth):
    for size in (16, 24, 64):
        costs = complexity.measure(models.create(name), channels=3, size=size)
        assert (costs.params, costs.depth) == (params, depth)


@pytest.mark.parametrize(("name", "megabytes"), [("simple_cnn", 44.96), ("resnet34", 59.81)])
def test_activations_are_what_torchinfo_1_8_counts_at_224(name, megabytes):
    assert complexity.measure(models.create(name), channels=3, size=224).activation_mb == pytest.approx(
        megabytes, abs=0.01
    )


def test_resnet34_costs_3_67_billion_multiply_adds_at_224():
    costs = complexity.measure(models.create("resnet34", num_classes=1000), channels=3, size=224)
    assert costs.macs == pytest.approx(3.66e9, rel=0.005)


@pytest.mark.parametrize(("channels", "size", "macs"), [(3, 84, 55_254_896), (48, 9, 1_272_832)])
def test_what_is_made_once_for_a_batch_counts_half(channels, size, macs):
    model = models.create("prism4_small", in_channels=channels)
    assert complexity.measure(model, channels, size).macs == macs
    pair, many = (flops(model.to("meta"), torch.empty(n, channels, size, size, device="meta")) for n in (2, 8))
    once = {3: 2 * 32 * 49 * 3 * 3, 48: 0}[channels]  # the stem's kernels for all channels
    assert pair == 4 * macs
    assert many - once == 4 * (pair - once)


def flops(model, images):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def test_measuring_leaves_the_model_alone():
    model = TwoConvs().train()
    complexity.measure(model, channels=3, size=10)
    assert model.training
    assert model.first.weight.device.type == "cpu"
    assert not model.first._forward_hooks
