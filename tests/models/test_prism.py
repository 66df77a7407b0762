import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from polychrome import models
from polychrome.kernels import per_sample_conv2d
from polychrome.kernels.modules import DynamicConv2d, SpatialAttention
from polychrome.models import complexity
from polychrome.models.any_channel_conv import AnyChannelConv2d
from polychrome.models.prism import Prism
from tests.models.probes import images, with_and_without_mask

MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
TINY = {"widths": (8, 12, 16, 20)}
PARTS = {"experts": (4, 4, 4, 1), "attention": True}  # those that the default form leaves out
every_prism = pytest.mark.parametrize("name", ["prism4", "prism4_small"])
both_forms = pytest.mark.parametrize("options", [{}, PARTS], ids=["plain", "all parts"])
places = pytest.mark.parametrize("fixed_places", [False, True])


def made(name="prism4", **options):
    """Return the network, its experts and statistics far from those it starts with."""
    torch.manual_seed(0)
    model = models.create(name, **options)
    for module in model.modules():
        if isinstance(module, DynamicConv2d):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.05, 0.2)
    return model


def stem(in_channels=3, experts=4, **options):
    torch.manual_seed(0)
    return AnyChannelConv2d(in_channels, 6, 5, stride=2, padding=2, experts=experts, **options)


class WeightLayers:
    """The weight layers a network called, in order, but those on one vector per sample, and of a gate of pixels."""

    def __init__(self, model):
        self.called = []
        gates = {
            layer for module in model.modules() if isinstance(module, SpatialAttention) for layer in module.modules()
        }
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | DynamicConv2d) and module not in gates:
                module.register_forward_hook(self._note)

    def _note(self, module, arguments, _output):
        if arguments[0].dim() == 4 and arguments[0].shape[2:] != (1, 1):
            self.called.append(module)


@every_prism
@both_forms
@pytest.mark.parametrize(("channels", "size"), [(3, 84), (1, 64), (13, 97)])
def test_four_weight_layers_on_the_longest_path_each_used_once(name, channels, size, options):
    with torch.device("meta"):
        model = models.create(name, **options).eval()
    layers = WeightLayers(model)
    assert complexity.depth(model, torch.empty(2, channels, size, size, device="meta")) == 4
    # the stem and three pairs side by side: no layer is applied twice
    assert len(layers.called) == len(set(layers.called)) == 7
    assert sum(isinstance(layer, AnyChannelConv2d) for layer in layers.called) == 1


@every_prism
def test_the_depth_is_four_by_either_count_and_seven_with_gates_written_out(name):
    images = torch.empty(2, 3, 84, 84, device="meta")
    with torch.device("meta"):
        plain, gated = models.create(name).eval(), models.create(name, attention=True).eval()
        deep = models.create("resnet34").eval()
    for model, beside, written_out in ((plain, 4, 4), (gated, 4, 7), (deep, 33, 33)):
        assert (complexity.depth(model, images), complexity.depth(model, images, gates=True)) == (beside, written_out)


def test_each_pair_of_branches_adds_one_layer_to_the_depth():
    with torch.device("meta"):
        model = Prism(**TINY, **PARTS)
    x = torch.empty(2, 3, 32, 32, device="meta")
    assert complexity.depth(model.stem, x) == 1
    depths = [complexity.depth(nn.Sequential(model.stem, *model.features[:end]), x) for end in (3, 6, 8, 10)]
    assert depths == [1, 2, 3, 4]


def test_the_small_one_has_less_than_half_a_million_parameters():
    assert sum(p.numel() for p in models.create("prism4_small").parameters()) < 500_000


@every_prism
@both_forms
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13])
def test_any_number_of_channels_forward_and_backward(name, channels, options):
    model = made(name, **options)
    logits = model(images(3, channels, 40, 33))
    assert logits.shape == (3, 50)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("in_channels", [1, 2, 16, 17, 48])
def test_made_for_any_number_of_channels(in_channels):
    layer = stem(in_channels)
    assert layer.in_channels == min(in_channels, 16)
    for channels in {1, 2, in_channels}:
        assert layer(images(2, channels, 12, 12)).isfinite().all()


@places
@both_forms
def test_a_masked_result_is_that_of_the_present_channels_alone(fixed_places, options):
    model = made("prism4_small", fixed_places=fixed_places, **options).eval()
    x = images(7, 3, 40, 36)
    masked = model(x, MASK)
    for b, mask in enumerate(MASK):
        standing = (mask.nonzero().flatten(),) if fixed_places else ()
        torch.testing.assert_close(model(x[b : b + 1, mask], None, *standing), masked[b : b + 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x, torch.ones(7, 3).bool()), model(x))
    assert torch.equal(model(x.masked_fill(~MASK[:, :, None, None], float("nan")), MASK), masked)


@both_forms
def test_gradients_are_those_of_the_present_channels_alone(options):
    mask = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    model = made(**TINY, dropout=0.0, **options).double()
    for masked, alone in with_and_without_mask(model, images(3, 3, 24, 24).double(), mask):
        torch.testing.assert_close(masked, alone)


@pytest.mark.parametrize("experts", [1, 4])
def test_a_sample_without_channels_counts_as_zeros(experts):
    layer = stem(experts=experts)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    got = layer(images(2, 3, 12, 12), mask)
    assert got.isfinite().all()
    torch.testing.assert_close(got, got[:, :, :1, :1].expand_as(got))


@pytest.mark.parametrize("experts", [1, 4])
def test_channels_and_their_places_can_be_reordered_together(experts):
    layer = stem(in_channels=5, experts=experts)
    x, order = images(4, 5, 20, 20), torch.tensor([3, 0, 4, 2, 1])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    standing = torch.tensor([[0.0, 1, 2, 3, 4], [0, 2.5, 0.5, 4, 1], [4, 3, 2, 1, 0], [1, 1, 1, 2, 2]])
    expected = layer(x, mask, standing)
    torch.testing.assert_close(layer(x[:, order], mask[:, order], standing[:, order]), expected, rtol=1e-5, atol=1e-5)
    moved = layer(x[:, order], mask[:, order], standing)
    # Of the last sample the channels are equally near: only the routing of several experts sees how near.
    rows = [0, 1] if experts == 1 else [0, 1, 3]
    assert (moved - expected).abs().amax((1, 2, 3))[rows].min() > 0.01


def test_the_place_of_a_channel_matters():
    layer = stem()
    x = images(2, 2, 20, 20)
    by_default = layer(x)
    torch.testing.assert_close(layer(x, None, torch.tensor([0, 2])), by_default)
    assert (layer(x, None, torch.tensor([0, 1])) - by_default).abs().max() > 0.01


def test_fixed_places_tell_which_channel_is_absent():
    x = images(1, 3, 20, 20)
    mask = torch.tensor([[True, True, False]])
    free, fixed = stem(), stem(fixed_places=True)
    same = x[:, [0, 2, 1]]
    torch.testing.assert_close(free(same, mask[:, [0, 2, 1]]), free(x, mask))
    assert (fixed(same, mask[:, [0, 2, 1]]) - fixed(x, mask)).abs().max() > 0.01
    torch.testing.assert_close(fixed(x, mask), free(x, mask, torch.arange(3)))
    for shown in (x[:, :2], x[:, :1], torch.cat([x, x], 1)):
        with pytest.raises(ValueError, match=r"with fixed_places for 3 channels needs the positions of x's"):
            fixed(shown)
        where = torch.linspace(0, 2, shown.shape[1])
        torch.testing.assert_close(fixed(shown, None, where), free(shown, None, where))


@pytest.mark.parametrize("experts", [1, 4])
def test_a_lone_band_of_many_counts_as_at_its_place(experts):
    layer, band = stem(48, experts, fixed_places=True), images(1, 1, 20, 20)
    made_differ(layer)
    masks = torch.eye(48, dtype=torch.bool)
    found = torch.cat([layer(band.expand(-1, 48, -1, -1), masks[place : place + 1]) for place in (3, 24, 40)])
    named = torch.cat([layer(band, None, torch.tensor([place])) for place in (3, 24, 40)])
    torch.testing.assert_close(found, named)
    assert min((found[0] - found[1]).abs().max(), (found[2] - found[1]).abs().max()) > 0.1


def test_a_lone_band_whose_place_is_not_known_is_at_none_of_them():
    layer, band = stem(48), images(1, 1, 20, 20)
    made_differ(layer)
    seen = []
    layer.attention.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, :16, 0, 0]))
    by_default = layer(band)
    torch.testing.assert_close(seen[0], torch.full((1, 16), 1 / 16))
    masks = torch.eye(48, dtype=torch.bool)
    for place in (3, 24, 40):
        shown = band.expand(-1, 48, -1, -1)
        torch.testing.assert_close(layer(shown, masks[place : place + 1]), by_default)
        assert (layer(band, None, torch.tensor([place])) - by_default).abs().max() > 0.01


def made_differ(layer):
    """Let a layer's single expert answer to which channels are present, or its routing more strongly."""
    torch.manual_seed(1)
    if layer.presence is not None:
        nn.init.normal_(layer.presence, 0, 0.2)
    else:
        layer.attention.fc1.weight.data.mul_(5)
        layer.attention.fc2.weight.data.mul_(5)


def test_the_presence_of_all_channels_changes_nothing():
    layer, x = stem(experts=1, fixed_places=True), images(3, 3, 20, 20)
    before = layer(x)
    made_differ(layer)
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(layer(x, torch.ones(3, 3, dtype=torch.bool)), before, rtol=1e-5, atol=1e-5)
    mask = torch.tensor([[True, True, False]]).expand(3, 3)
    shift = (torch.tensor([1.0, 1.0, torch.tensor(-4.0).exp()]) - 1) @ layer.presence.T
    told, layer.presence.data = layer(x, mask), torch.zeros_like(layer.presence)
    torch.testing.assert_close(told, layer(x, mask) + shift[:, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5, 13])
def test_a_gray_image_gives_the_same_in_any_number_of_channels(channels):
    layer = stem(experts=1)
    gray = images(2, 1, 20, 20)
    expected = layer(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(layer(gray.expand(-1, channels, -1, -1)), expected, rtol=1e-5, atol=1e-5)


def test_kernels_that_compare_channels_give_zero_for_a_lone_one():
    layer = stem(experts=1)
    with torch.no_grad():
        layer.weight[0, :, 0] = -layer.weight[0, :, 1] - layer.weight[0, :, 2]
        layer.bias.zero_()
    assert layer(images(2, 1, 20, 20)).abs().max() < 1e-5
    assert layer(images(2, 2, 20, 20)).abs().max() > 0.1


def test_the_stem_can_be_any_convolution_of_all_its_channels():
    conv = nn.Conv2d(3, 6, 5, stride=2, padding=2)
    layer = stem(experts=1)
    distance = torch.arange(3.0)[:, None] - torch.arange(3.0)
    estimate = (-4 * distance**2).softmax(1)
    with torch.no_grad():
        layer.weight[0] = torch.einsum("ochw,cp->ophw", conv.weight, estimate.inverse())
        layer.bias[0] = conv.bias
    x = images(2, 3, 20, 21)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-5)


def test_the_stem_by_hand():
    layer = stem()
    layer.attention.fc2.weight.data.mul_(5)
    x, mask = images(1, 3, 12, 12) * torch.tensor([1.0, 2, 3])[:, None, None], torch.tensor([[True, False, True]])
    near, far, both = torch.tensor(-4.0).exp(), torch.tensor(-16.0).exp(), torch.tensor([0.5, 0.5])
    own = torch.tensor([1.0, far]) / (1 + far)
    estimate = torch.stack([own, both, own.flip(0)])
    r, b = x[0, 0], x[0, 2]
    means = estimate @ torch.stack([r.mean(), b.mean()])
    deviations = estimate @ torch.stack([r.std(correction=0), b.std(correction=0)])
    features = torch.cat([torch.stack([torch.tensor(1.0), near, torch.tensor(1.0)]), means, deviations])
    hidden = (layer.attention.fc1.weight.flatten(1) @ features).relu()
    mixing = (layer.attention.fc2.weight.flatten(1) @ hidden + layer.attention.fc2.bias).softmax(0)
    assert mixing.max() - mixing.min() > 0.1
    kernel = torch.einsum("k,kophw->ophw", mixing, layer.weight)
    places = torch.einsum("pc,chw->phw", estimate, torch.stack([r, b]))
    expected = F.conv2d(places[None], kernel, mixing @ layer.bias, stride=2, padding=2)
    torch.testing.assert_close(layer(x, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("standing", [None, torch.tensor([0.0, 1.0, 1.6])])
def test_a_single_expert_convolves_the_places_of_the_image(mask, standing):
    """And gives what one convolution per sample with the kernels made for its channels gives."""
    layer, x = stem(experts=1), images(7, 3, 21, 20)
    present = torch.ones_like(MASK) if mask is None else mask
    estimate, _ = layer._places(present, standing)
    kernels = torch.einsum("ophw,bpc->bochw", layer.weight[0], estimate)
    shown = x.masked_fill(~present[:, :, None, None], 0)
    expected = per_sample_conv2d(shown, kernels, layer.bias.expand(7, -1), layer.stride, layer.padding)
    torch.testing.assert_close(layer(x, mask, standing), expected, rtol=0, atol=1e-5)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize(("in_channels", "shown"), [(3, 3), (3, 5), (16, 16), (17, 17), (48, 3), (48, 48)])
def test_without_a_mask_a_single_expert_gives_the_same_for_no_more_operations(in_channels, shown):
    layer, x = stem(in_channels, experts=1), images(8, shown, 20, 20)
    found = []
    for mask in (None, torch.ones(8, shown, dtype=torch.bool)):
        with FlopCounterMode(display=False) as counter:
            found.append((layer(x, mask), counter))
    (alone, plain), (masked, general) = found
    torch.testing.assert_close(alone, masked, rtol=1e-4, atol=1e-5)
    assert plain.get_total_flops() <= general.get_total_flops()


def test_an_exported_stem_takes_any_number_of_channels():
    layer = stem(experts=1)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("channels", max=30)}
    exported = torch.export.export(layer, (images(2, 5, 12, 12),), dynamic_shapes=(shape,)).module()
    for channels in (1, 3, 20):
        x = images(3, channels, 12, 12)
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("experts", [1, 4])
def test_no_image_makes_no_map(experts):
    assert stem(experts=experts)(torch.empty(0, 3, 20, 20)).shape == (0, 6, 10, 10)


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), (2, 2), ()])
def test_positions_that_do_not_fit_are_refused(experts, shape):
    with pytest.raises(ValueError, match=r"channels must be \[channels=3\] or \[batch=2, channels=3\], got"):
        stem(experts=experts)(images(2, 3, 20, 20), None, torch.zeros(shape))


def test_a_single_expert_can_be_drawn_again():
    layer = stem(experts=1)
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)


def test_branches_by_hand():
    model = made(**TINY, **PARTS).eval()
    branches = model.features[3]
    x = images(2, 8, 9, 10)
    small, large = branches.small, branches.large
    assert (small[0].experts, large[0].kernel_size, large[0].groups) == (4, (9, 9), 8)
    expected = torch.cat([small[1](small[0](x)).relu(), large[1](large[0](x)).relu()], 1)
    torch.testing.assert_close(branches(x), expected)


def test_each_part_can_be_left_out():
    with torch.device("meta"):
        plain = Prism(**TINY, large_kernels=(0, 0, 0))
    assert [type(layer).__name__ for layer in plain.features] == [
        *("BatchNorm2d", "ReLU", "MaxPool2d"),
        *("Branches", "MaxPool2d", "Branches", "Branches"),
    ]
    assert not any(type(module) is DynamicConv2d for module in plain.modules())
    assert plain.head[-1].in_features == 20
    assert complexity.depth(plain, torch.empty(2, 3, 32, 32, device="meta")) == 4


def test_with_a_plain_stem_it_takes_the_channels_it_is_made_for():
    model = Prism(**TINY, plain_stem=True).eval()
    assert type(model.stem) is nn.Conv2d
    assert not model.any_channels
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.head(model.features(model.stem(x))))
    with pytest.raises(ValueError, match="with plain_stem all channels are present"):
        model(x, torch.ones(2, 3, dtype=torch.bool))
    assert complexity.depth(model.to("meta"), torch.empty(2, 3, 32, 32, device="meta")) == 4


def test_the_experts_start_nearly_alike():
    torch.manual_seed(0)
    layers = [module for module in Prism(**TINY, **PARTS).modules() if isinstance(module, DynamicConv2d)]
    assert len(layers) == 3
    for layer in layers:
        first, *others = layer.weight
        for other in others:
            assert 0.05 < (other - first).norm() / first.norm() < 0.2


@both_forms
def test_channels_last_and_bfloat16_change_little(options):
    model = made(**TINY, **options).eval()
    x = images(7, 3, 40, 40)
    expected = model(x, MASK)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), MASK)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x, MASK)
    assert (got - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.slow), PARTS], ids=["plain", "all parts"])
def test_a_whole_step_compiles_once_for_all_masks(options):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    model = made(**TINY, dropout=0.0, **options)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = images(7, 3, 24, 24)
    for mask in (MASK, MASK.flip(0)):
        expected = model(x, mask)
        got = compiled(x, mask)
        got.sum().backward()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert backend.frame_count == 1


def test_positions_may_be_a_list():
    """As the message of a layer with fixed places advises: `[0]` for the first alone."""
    for layer in (stem(fixed_places=True), stem(experts=1)):
        x = images(2, 1, 12, 12)
        assert torch.equal(layer(x, None, [0]), layer(x, None, torch.tensor([0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": (1, 1, 1)}, r"experts must be 4 numbers, got \(1, 1, 1\)"),
        ({"widths": (8,) * 5}, "widths must be 4 numbers"),
        ({"large_kernels": (9, 9)}, "large_kernels must be 3 numbers"),
        ({"large_kernels": (9, 8, 7)}, r"large_kernels must be odd, or 0 for none, got \(9, 8, 7\)"),
        ({"plain_stem": True, "fixed_places": True}, "plain_stem has neither places nor experts.*fixed_places=True"),
        ({"plain_stem": True, "experts": (4, 1, 1, 1)}, r"plain_stem has neither.*experts=\(4, 1, 1, 1\)"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Prism(**options)


def test_channels_of_another_shape_say_what_is_wanted():
    with pytest.raises(ValueError, match=r"^channels must be \[channels=3\] or \[batch=2, channels=3\], got \[2\]$"):
        stem()(images(2, 3, 12, 12), None, torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"^mask must be a bool tensor"):
        stem()(images(2, 3, 12, 12), torch.ones(2, 3))


def test_a_stem_of_places_is_not_made_from_a_convolution_of_channels():
    with pytest.raises(TypeError, match=r"^AnyChannelConv2d is not made from a convolution.*AnyChannels makes"):
        AnyChannelConv2d.from_conv(nn.Conv2d(3, 6, 5), experts=1)
