import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import WeightsEnum

from polychrome import models
from polychrome.kernels.modules import DynamicConv2d
from polychrome.models import complexity, initialise
from polychrome.models.initialise import he_
from polychrome.models.resnetv2 import StandardisedConv2d
from polychrome.models.vgg import vgg19_features
from tests.grids import grid, usual
from tests.models.probes import images, parameter_count

# with 3 channels, 50 classes and the model's own image size
PARAMETERS = {
    "simple_cnn": 139_570,
    "pool_attention_cnn": 139_299,
    "attention_cnn": 446_868,
    "naive_cnn": 9_038_002,
    "adaptive_channel_cnn": 15_353_260,
    "attention_separable_cnn": 2_641_744,
    "dynamic_cnn_v1": 31_570,
    "dynamic_cnn_v2": 63_314,
    "baseline_cnn": 22_834,
    "simple_2layer_cnn": 237_746,
    "se_2layer_cnn": 240_510,
    "simple_4layer_cnn": 301_106,
    "base_net": 93_122,
    "vgg19": 139_775_090,
    "vgg_slim": 6_995_314,
    "resnet18": 11_202_162,
    "resnet34": 21_310_322,
    "resnet50": 23_610_482,
    "googlenet": 5_651_154,
    "vgg_resnet_sum": 31_226_546,
    "vgg_resnet_concat": 31_252_146,
    "resnetv2": 23_602_802,
    "prism4": 2_684_018,
    "prism4_small": 421_362,
}
NAMES = [*PARAMETERS, "dwg_densenet121", "rrdb", "rrdb_rnn"]
ANY_CHANNELS = {
    *("pool_attention_cnn", "adaptive_channel_cnn", "dynamic_cnn_v1", "dynamic_cnn_v2", "dwg_densenet121"),
    *("prism4", "prism4_small"),
}
# a model that is not here takes images of one pixel
SMALLEST = {
    "simple_cnn": 8,
    "pool_attention_cnn": 12,
    "attention_cnn": 16,
    "naive_cnn": 16,
    "adaptive_channel_cnn": 64,
    "attention_separable_cnn": 16,
    "baseline_cnn": 2,
    "simple_2layer_cnn": 2,
    "se_2layer_cnn": 2,
    "simple_4layer_cnn": 8,
    "base_net": 16,
    "vgg19": 32,
    "vgg_slim": 8,
    "googlenet": 15,
    "vgg_resnet_sum": 32,
    "vgg_resnet_concat": 32,
    "dwg_densenet121": 29,
    "prism4": 5,
    "prism4_small": 5,
}
ONE_SIZE = {"naive_cnn", "attention_separable_cnn"}
# weights of the first convolution for one input channel
FIRST = {
    "simple_cnn": 32 * 9,
    "attention_cnn": 32 * 10,
    "naive_cnn": 16 * 9,
    "attention_separable_cnn": 9 + 1 + 32,
    "baseline_cnn": 32 * 9,
    "simple_2layer_cnn": 64 * 49,
    "se_2layer_cnn": 64 * 49,
    "simple_4layer_cnn": 32 * 49,
    "base_net": 6 * 25,
    "vgg19": 64 * 9,
    "vgg_slim": 64 * 9,
    "resnet18": 64 * 49,
    "resnet34": 64 * 49,
    "resnet50": 64 * 49,
    "googlenet": 64 * 49,
    "vgg_resnet_sum": 64 * 9 + 64 * 49,
    "vgg_resnet_concat": 64 * 9 + 64 * 49,
    "resnetv2": 64 * 49,
    "prism4": 64 * 49,
    "prism4_small": 32 * 49,
}
# the largest: 140 million parameters take longer than all other models together
LARGE = {"vgg19", "resnet34", "resnet50", "vgg_resnet_concat"}
every_model_in_memory = pytest.mark.parametrize("name", usual(NAMES, *(name for name in NAMES if name not in LARGE)))
any_channels = pytest.mark.parametrize("name", ["pool_attention_cnn", "dynamic_cnn_v1", "dynamic_cnn_v2"])


def made(name, **options):
    torch.manual_seed(0)
    return models.create(name, **options)


def on_meta(name, **options):
    """Return the model without memory: it has shapes and no values."""
    with torch.device("meta"):
        return models.create(name, **options).eval()


@pytest.mark.parametrize("name", usual(["resnet18", "resnet34", "resnet50"], "resnet18"))
def test_a_small_stem_leaves_later_maps_twice_as_large(name):
    usual, small = on_meta(name), on_meta(name, small_stem=True)
    assert parameter_count(usual) - parameter_count(small) == 64 * 3 * (49 - 9)
    sizes = {}
    for model in (usual, small):
        model.layer4.register_forward_hook(lambda _, __, out, model=model: sizes.update({model: out.shape[2:]}))
        assert model(torch.empty(2, 3, 84, 84, device="meta")).shape == (2, 50)
    assert (sizes[usual], sizes[small]) == ((3, 3), (6, 6))
    costs = [complexity.measure(model, 3, 84) for model in (usual, small)]
    assert 3.4 < costs[1].macs / costs[0].macs < 3.9
    assert costs[0].depth == costs[1].depth


@pytest.mark.parametrize(
    ("name", "options", "warned"),
    [
        ("resnet18", {}, 0),
        ("resnet18", {"in_channels": 4}, 1),
        ("resnet18", {"small_stem": True}, 1),
        ("vgg19", {}, 0),
        ("vgg19", {"in_channels": 4}, 1),
    ],
)
def test_trained_weights_without_a_first_convolution_are_told(name, options, warned, monkeypatch, recwarn):
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    for weights in (None, "IMAGENET1K_V1"):
        on_meta(name, num_classes=1000, weights=weights, **options)
    assert [str(w.message)[:41] for w in recwarn] == ["the first convolution is drawn anew: torc"] * warned


@pytest.mark.parametrize("channels", [1, 5])
def test_a_small_stem_takes_any_number_of_channels_it_is_made_for(channels):
    model = made("resnet18", in_channels=channels, small_stem=True)
    assert model(images(2, channels, 32, 32)).shape == (2, 50)
    # As torchvision initialises: the fan is of the outputs.
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_reported_ones(name):
    assert parameter_count(on_meta(name)) == PARAMETERS[name]


def test_naive_cnn_has_the_reported_count_with_one_channel():
    assert parameter_count(on_meta("naive_cnn", in_channels=1)) == 9_037_714


@pytest.mark.parametrize(("name", "thousands"), [("rrdb", (165, 175)), ("rrdb_rnn", (295, 305))])
def test_counts_that_are_reported_rounded(name, thousands):
    least, most = thousands
    assert least * 1000 <= parameter_count(on_meta(name)) <= most * 1000


def test_names_are_sorted_and_can_all_be_created():
    assert models.names() == sorted(NAMES)


def test_a_model_is_ours_where_no_package_called_models_can_be_imported(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("models.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "models", None)
    for name in NAMES:
        assert on_meta(name) is not None


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("resnet43", "; did you mean resnet34?"),
        ("simple-cnn", "; did you mean simple_cnn?"),
        ("zzz", ""),
    ],
)
def test_an_unknown_name_lists_the_names_and_the_closest(name, ending):
    with pytest.raises(models.UnknownModelError) as caught:
        models.create(name)
    assert str(caught.value) == f"no model is called {name!r}, the models are {', '.join(models.names())}{ending}"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "option", "error"),
    [
        ("prism4", {"foo": 1}, TypeError),
        ("prism4", {"widths": 3}, TypeError),
        ("prism4", {"widths": (3,)}, ValueError),
        ("naive_cnn", {"image_size": 3}, ValueError),
        ("resnet50", {"weights": "NOPE"}, KeyError),
    ],
)
def test_a_refused_option_raises_what_the_documentation_says(name, option, error):
    with pytest.raises(error):
        models.create(name, **option)


def test_listing_the_names_imports_no_torch():
    code = """
import sys, time
from polychrome import models
print(len(models.names()), 'torch' in sys.modules, 'polychrome.kernels' in sys.modules, time.process_time())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *found, seconds = result.stdout.split()
    assert found == [str(len(NAMES)), "False", "False"]
    assert float(seconds) < 1


def test_the_image_size_goes_to_the_models_made_for_one_size():
    sized = {name for name in NAMES if getattr(on_meta(name, image_size=84), "image_size", None) == 84}
    assert sized == ONE_SIZE
    assert on_meta("naive_cnn", image_size=84).head[1].in_features == 128 * 5 * 5
    assert on_meta("attention_separable_cnn", image_size=84).head[-1].in_features == 256 * 5 * 5
    assert on_meta("naive_cnn").image_size == 128
    assert on_meta("naive_cnn", image_size=np.int64(64)).head[1].in_features == 128 * 4 * 4
    assert on_meta("attention_separable_cnn", image_size=None).image_size == 224


def test_naive_cnn_alone_is_trained_once_per_combination():
    assert [name for name in NAMES if getattr(on_meta(name), "one_per_combination", False)] == ["naive_cnn"]


@grid(strength=1, name=NAMES, size=[(64, 64), (97, 84), (128, 70)])
def test_any_spatial_size_and_class_count(name, size):
    height, width = size
    width = height if name in ONE_SIZE else width
    model = on_meta(name, num_classes=7, image_size=height)
    assert model(torch.empty(2, 3, height, width, device="meta")).shape == (2, 7)


@every_model_in_memory
def test_the_smallest_image(name):
    size = SMALLEST.get(name, 1)
    logits = made(name, image_size=size).eval()(images(2, 3, size, size))
    assert logits.shape == (2, 50)
    assert logits.isfinite().all()
    if size > 1:
        with pytest.raises((ValueError, RuntimeError)):
            on_meta(name, image_size=size - 1)(torch.empty(2, 3, size - 1, size - 1, device="meta"))


@grid(strength=1, name=NAMES, channels=[1, 2, 5])
def test_in_channels_sets_the_width_of_the_first_convolution(name, channels):
    model = on_meta(name, in_channels=channels, image_size=64)
    assert model(torch.empty(2, channels, 64, 64, device="meta")).shape == (2, 50)
    added = parameter_count(model) - parameter_count(on_meta(name, image_size=64))
    if name in FIRST:
        assert added == (channels - 3) * FIRST[name]
    else:
        assert (added == 0) == model.any_channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_adaptive_channel_cnn_takes_these_channels_at_every_size(channels):
    model = made("adaptive_channel_cnn").eval()
    with torch.no_grad():
        for size in (64, 84, 97, 224):
            logits = model(images(1, channels, size, size))
            assert logits.shape == (1, 50)
            assert logits.isfinite().all()


def test_a_mixer_does_not_see_the_other_samples_in_training():
    layers = [m for m in made("adaptive_channel_cnn").train().modules() if isinstance(m, DynamicConv2d)]
    assert len(layers) == 10
    for layer in layers:
        layer.attention.temperature.fill_(1)
        x = images(3, layer.in_channels, 6, 5)
        others = torch.cat([x[:1], 7 - 3 * x[1:]])
        with torch.no_grad():
            torch.testing.assert_close(layer.attention(others)[0], layer.attention(x)[0], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(layer.attention(x[:1])[0], layer.attention(x)[0], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(layer(others)[0], layer(x)[0], rtol=1e-5, atol=1e-6)
            assert layer.in_channels == 2 or (layer.attention(others)[1] - layer.attention(x)[1]).abs().max() > 1e-3


@every_model_in_memory
def test_every_parameter_gets_a_gradient(name):
    size = max(48, SMALLEST.get(name, 1))
    model = made(name, image_size=size)
    loss = nn.functional.cross_entropy(model(images(4, 3, size, size)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # zero by construction: a bias before a BatchNorm; zero where its ReLU is off: the mixer's one hidden channel
    one_hidden = "summary.0.attention"
    assert all(p.grad.any() for n, p in model.named_parameters() if n.endswith("weight") and one_hidden not in n)


@pytest.mark.parametrize(("channels", "masked"), [(1, False), (48, False), (48, True)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in sorted(ANY_CHANNELS - {"prism4", "dwg_densenet121"})),
        pytest.param("dwg_densenet121", {}, marks=pytest.mark.slow),
        ("prism4_small", {"experts": (4, 4, 4, 1)}),
        ("prism4_small", {"fixed_places": True}),
    ],
)
def test_no_parameter_lacks_a_gradient_however_many_channels_are_shown(name, options, channels, masked):
    """Several processes that train one model would wait for it."""
    size = SMALLEST.get(name, 16)
    with torch.device("meta"):
        model = models.create(name, in_channels=channels, **options)
        mask = torch.ones(2, channels, dtype=torch.bool) if masked else None
        model(torch.empty(2, channels, size, size), mask).sum().backward()
    assert [path for path, parameter in model.named_parameters() if parameter.grad is None] == []


def test_adaptive_channel_cnn_trained_on_wide_inputs_sees_the_first_channels():
    module = made("adaptive_channel_cnn").features[0].train()
    x = images(2, 48, 8, 8)
    torch.testing.assert_close(module(x), module.conv(x[:, :32]))


@every_model_in_memory
def test_the_same_seed_makes_the_same_network(name):
    one, other = made(name).state_dict(), made(name).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_only_models_that_take_any_channel_count_say_so():
    assert {name for name in NAMES if on_meta(name).any_channels} == ANY_CHANNELS


@any_channels
def test_a_masked_result_is_that_of_the_present_channels_alone(name):
    model = made(name).eval()
    x = images(7, 3, 40, 36)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    masked = model(x, mask)
    alone = torch.cat([model(x[b : b + 1, mask[b]]) for b in range(7)])
    torch.testing.assert_close(masked, alone, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(x, torch.ones(7, 3).bool()), model(x), rtol=1e-6, atol=1e-6)
    for other in (x * 7 + 3, torch.nan):
        assert torch.equal(model(torch.where(mask[:, :, None, None], x, other), mask), masked)


@pytest.mark.parametrize("name", ["pool_attention_cnn", "dynamic_cnn_v2"])
def test_models_without_channel_names_do_not_see_the_order_or_the_count(name):
    model = made(name).eval()
    x = images(2, 3, 24, 24)
    for same in (x[:, [2, 0, 1]], torch.cat([x, x], 1)):
        torch.testing.assert_close(model(same), model(x), rtol=1e-5, atol=1e-6)
    assert model(images(2, 13, 24, 24)).shape == (2, 50)


def test_pool_attention_cnn_by_hand():
    model = made("pool_attention_cnn").eval()
    x = images(2, 3, 24, 20)
    shared = model.shared
    summed = shared(x.mean(1, keepdim=True)) + shared(x.amax(1, keepdim=True))
    torch.testing.assert_close(model(x), model.trunk(summed))


def test_attention_cnn_by_hand():
    model = made("attention_cnn").eval()
    x = images(2, 3, 32, 48)
    y = x
    for block in list(model.features)[::2]:
        conv, norm, _ = block.branch
        y = nn.functional.max_pool2d((norm(conv(y)).relu() + block.shortcut(y)).relu(), 2)
    maps = torch.stack([y.mean(1), y.amax(1)], 1)
    y = y * nn.functional.conv2d(maps, model.attention.conv.weight, padding=3).sigmoid()
    torch.testing.assert_close(model(x), y.mean((2, 3)) @ model.head[-1].weight.T + model.head[-1].bias)


@pytest.mark.parametrize("name", ["simple_cnn", "pool_attention_cnn", "attention_cnn"])
def test_channels_last_changes_no_result(name):
    model = made(name).eval()
    x = images(2, 3, 32, 32)
    expected = model(x)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["simple_cnn", "pool_attention_cnn", "attention_cnn"])
def test_bfloat16_autocast_stays_near_float32(name):
    model = made(name).eval()
    x = images(4, 3, 32, 32)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert got.isfinite().all()
    assert (got - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.parametrize("name", usual(["simple_cnn", "pool_attention_cnn", "attention_cnn"], "pool_attention_cnn"))
def test_one_compilation_serves_every_batch_size(name):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    model = made(name, dropout=0.0)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    # below 8: torch's CPU convolution guards on a batch of 16, and pool_attention_cnn convolves 2 * batch maps
    for batch in (2, 3, 4, 5, 7):
        x = images(batch, 3, 32, 32)
        expected = model.train()(x)
        torch._dynamo.mark_dynamic(x, 0)
        got = compiled(x)
        got.sum().backward()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert backend.frame_count == 1


def test_flops_include_the_attention():
    model = made("attention_cnn").eval()
    with FlopCounterMode(display=False) as counter:
        model(images(1, 3, 32, 32))
    widths = (3, 32, 64, 128, 256)
    pixels = (1024, 256, 64, 16)
    blocks = sum(2 * p * a * b * 10 for p, a, b in zip(pixels, widths[:-1], widths[1:], strict=True))
    assert counter.get_total_flops() == blocks + 2 * (2 * 2) * 2 * 49 + 2 * 256 * 50


@pytest.mark.parametrize(("name", "options"), [("resnet18", {}), ("googlenet", {"aux_logits": False})])
def test_torchvision_models_are_torchvisions(name, options):
    model = made(name).eval()
    torch.manual_seed(0)
    start = {"init_weights": True} if name == "googlenet" else {}
    expected = getattr(torchvision.models, name)(num_classes=50, **options, **start).eval()
    x = images(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))


def test_vgg19_features_are_torchvisions():
    with torch.device("meta"):
        expected = {name: p.shape for name, p in torchvision.models.vgg19().features.named_parameters()}
    assert {name: p.shape for name, p in vgg19_features().named_parameters()} == expected


@pytest.mark.parametrize(
    ("name", "weight", "deviation"),
    [
        ("resnet18", "conv1.weight", (2 / (64 * 49)) ** 0.5),
        ("googlenet", "conv1.conv.weight", 0.01),
        ("vgg_resnet_sum", "vgg.0.0.weight", (2 / (64 * 9)) ** 0.5),
        ("resnetv2", "stem.conv.weight", (2 / (64 * 49)) ** 0.5),
    ],
)
def test_a_first_convolution_for_other_channels_starts_like_the_usual_one(name, weight, deviation):
    for channels in (3, 5):
        first = made(name, in_channels=channels).get_parameter(weight)
        assert first.shape[1] == channels
        assert first.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(first.mean().item()) < 0.1 * deviation


@pytest.mark.parametrize("name", ["vgg_resnet_sum", "vgg_resnet_concat"])
def test_vgg_resnet_by_hand(name):
    model = made(name).eval()
    x = images(2, 3, 40, 64)
    with torch.no_grad():
        vgg = model.vgg[0](x).mean((2, 3))
        layers = [layer for key, layer in model.resnet.named_children() if key not in ("avgpool", "fc")]
        resnet = nn.Sequential(*layers)(x).mean((2, 3))
        assert vgg.shape == resnet.shape == (2, 512)
        joined = vgg + resnet if name == "vgg_resnet_sum" else torch.cat([vgg, resnet], 1)
        expected = joined @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_vgg_slim_has_four_pairs_and_three_poolings():
    layers = [layer for layer in made("vgg_slim").features.modules() if isinstance(layer, (nn.Conv2d, nn.MaxPool2d))]
    widths = ["pool" if isinstance(layer, nn.MaxPool2d) else layer.out_channels for layer in layers]
    assert widths == [64, 64, "pool", 128, 128, "pool", 256, 256, "pool", 512, 512]


def test_base_net_averages_nothing_at_32_pixels():
    model = made("base_net").eval()
    x = images(2, 3, 32, 32)
    maps = model.features(x)
    assert maps.shape == (2, 16, 5, 5)
    torch.testing.assert_close(model(x), model.head[1:](maps))


def test_resnetv2_has_the_count_and_the_names_of_timms():
    model = on_meta("resnetv2", num_classes=1000)
    assert parameter_count(model) == 25_549_352
    expected = {"stem.conv.weight", "norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    for stage, blocks in enumerate((3, 4, 6, 3)):
        expected.add(f"stages.{stage}.blocks.0.downsample.conv.weight")
        for block in range(blocks):
            prefix = f"stages.{stage}.blocks.{block}"
            expected |= {f"{prefix}.{layer}{n}.weight" for layer in ("conv", "norm") for n in (1, 2, 3)}
            expected |= {f"{prefix}.norm{n}.bias" for n in (1, 2, 3)}
    assert set(model.state_dict()) == expected
    assert model.head.fc.weight.shape == (1000, 2048, 1, 1)
    strides = [stage.blocks[0].conv2.stride for stage in model.stages]
    assert strides == [(1, 1), (2, 2), (2, 2), (2, 2)]


def test_a_standardised_convolution_ignores_the_scale_and_mean_of_each_kernel():
    conv = StandardisedConv2d(3, 4, 3, stride=2, padding=1, bias=False)
    x = images(2, 3, 9, 8)
    kernels = conv.weight.flatten(1)
    standard = (kernels - kernels.mean(1, keepdim=True)) / kernels.std(1, correction=0, keepdim=True)
    expected = nn.functional.conv2d(x, standard.view_as(conv.weight), stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        conv.weight.mul_(torch.tensor([2.0, 3, 4, 5]).view(4, 1, 1, 1)).add_(1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_a_resnetv2_bottleneck_by_hand():
    block = made("resnetv2").stages[1].blocks[0]
    x = images(2, 256, 8, 8)
    active = block.norm1(x).relu()
    y = block.conv3(block.norm3(block.conv2(block.norm2(block.conv1(active)).relu())).relu())
    torch.testing.assert_close(block(x), y + block.downsample.conv(active), rtol=1e-4, atol=1e-4)
    assert block(x).shape == (2, 512, 4, 4)


def test_he_draws_convolutions_by_fan_out_and_linear_layers_by_fan_in():
    model = nn.Sequential(
        nn.Conv2d(8, 64, 5),
        nn.Conv2d(64, 64, 5, groups=64),
        nn.Linear(300, 128),
        nn.BatchNorm2d(6),
        nn.GroupNorm(2, 6),
        nn.BatchNorm2d(6, affine=False),
        nn.Linear(50, 20, bias=False),
    )
    for p in model.parameters():
        nn.init.constant_(p, 3)
    model[3].running_mean.fill_(5)
    torch.manual_seed(0)
    he_(model)
    for layer, fan in ((model[0], 64 * 25), (model[1], 25), (model[2], 300), (model[6], 50)):
        assert layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.1 * (2 / fan) ** 0.5
        # a uniform distribution ends at 1.73 deviations
        assert layer.weight.abs().max() > 2.5 * (2 / fan) ** 0.5
    assert not any(layer.bias.any() for layer in model[:5])
    assert all(torch.equal(layer.weight, torch.ones(6)) for layer in (model[3], model[4]))
    assert model[3].running_mean.eq(5).all()


@pytest.mark.parametrize("groups", [1, 4])
def test_he_draws_every_expert_by_its_own_fan_out(groups):
    layer = DynamicConv2d(32, 64, 3, groups=groups, experts=4)
    he_(layer)
    deviation = (2 / (64 // groups * 9)) ** 0.5
    for expert in layer.weight:
        assert expert.std().item() == pytest.approx(deviation, rel=0.06)
    assert (layer.weight[0] - layer.weight[1]).abs().max() > deviation
    assert not layer.bias.any()
    assert layer.attention.fc1.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.2)
    assert not layer.attention.fc2.bias.any()


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in NAMES), ("prism4_small", {"experts": (4, 4, 4, 1)})]
)
def test_he_draws_every_layer_on_vectors_by_fan_in(name, options, monkeypatch):
    fans, vectors = {}, set()
    monkeypatch.setattr(initialise, "_draw", lambda layer, fan: fans.update({layer: fan}))
    model = on_meta(name, image_size=128, **options)
    he_(model)
    for layer in fans:
        layer.register_forward_pre_hook(
            lambda layer, given: vectors.add(layer) if given[0].shape[2:] in ((), (1, 1)) else None
        )
    model(torch.empty(2, 3, 128, 128, device="meta"))
    assert vectors
    assert {layer: fans[layer] for layer in vectors} == {layer: layer.weight[0].numel() for layer in vectors}


def test_he_leaves_the_experts_of_a_prism_nearly_alike():
    model = made("prism4_small", experts=(4, 4, 4, 1))
    he_(model)
    layers = [layer for layer in model.modules() if isinstance(layer, DynamicConv2d)]
    assert len(layers) == 3
    for layer in layers:
        first, *others = layer.weight
        assert all(0.05 < (other - first).norm() / first.norm() < 0.2 for other in others)


@pytest.mark.parametrize(
    "name", usual(["simple_cnn", "adaptive_channel_cnn", "resnet18", "vgg_slim", "resnetv2"], "simple_cnn", "vgg_slim")
)
def test_he_is_repeatable_and_gives_finite_logits(name):
    model = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        he_(model)
        drawn.append({key: value.clone() for key, value in model.state_dict().items()})
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in before)
    weights = [key for key, value in before.items() if key.endswith("weight") and value.dim() > 1]
    assert not any(torch.equal(drawn[0][key], before[key]) for key in weights)
    with torch.no_grad():
        assert model.eval()(images(2, 3, 64, 64)).isfinite().all()
