import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import models

PARAMETERS = {
    "simple_cnn": 139_570,
    "pool_attention_cnn": 139_299,
    "attention_cnn": 446_868,
    "resnet34": 21_310_322,
    "dynamic_cnn_v1": 31_570,
    "dynamic_cnn_v2": 63_314,
    "baseline_cnn": 22_834,
    "simple_2layer_cnn": 237_746,
    "se_2layer_cnn": 240_510,
    "simple_4layer_cnn": 301_106,
}
every_model = pytest.mark.parametrize("name", PARAMETERS)
any_channels = pytest.mark.parametrize("name", ["pool_attention_cnn", "dynamic_cnn_v1", "dynamic_cnn_v2"])


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def parameter_count(model):
    return sum(p.numel() for p in model.parameters())


def made(name, **options):
    torch.manual_seed(0)
    return models.create(name, **options)


@every_model
def test_parameter_counts_are_the_reported_ones(name):
    assert parameter_count(models.create(name)) == PARAMETERS[name]


def test_names_are_sorted_and_can_all_be_created():
    assert models.names() == sorted(PARAMETERS)


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


def test_listing_the_names_imports_no_torch():
    code = "import sys, models; print(len(models.names()), 'torch' in sys.modules, 'kernels' in sys.modules)"
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(len(PARAMETERS)), "False", "False"]
    assert time.perf_counter() - start < 2


@every_model
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 40)])
def test_any_spatial_size_and_class_count(name, height, width):
    model = made(name, num_classes=7).eval()
    assert model(images(2, 3, height, width)).shape == (2, 7)


@every_model
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_in_channels_sets_the_width_of_the_first_convolution(name, channels):
    model = made(name, in_channels=channels).eval()
    assert model(images(2, channels, 32, 32)).shape == (2, 50)
    first = {
        "simple_cnn": 32 * 9,
        "attention_cnn": 32 * 10,
        "resnet34": 64 * 49,
        "baseline_cnn": 32 * 9,
        "simple_2layer_cnn": 64 * 49,
        "se_2layer_cnn": 64 * 49,
        "simple_4layer_cnn": 32 * 49,
    }
    assert (name not in first) == model.any_channels
    assert parameter_count(model) == PARAMETERS[name] + (channels - 3) * first.get(name, 0)


@every_model
def test_every_parameter_gets_a_gradient(name):
    model = made(name)
    loss = nn.functional.cross_entropy(model(images(4, 3, 48, 48)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # a bias before a BatchNorm has a gradient of zero by construction, a weight has not
    assert all(p.grad.any() for n, p in model.named_parameters() if n.endswith("weight"))


@every_model
def test_the_same_seed_makes_the_same_network(name):
    one, other = made(name).state_dict(), made(name).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_only_models_that_take_any_channel_count_say_so():
    found = {name for name in PARAMETERS if made(name).any_channels}
    assert found == {"pool_attention_cnn", "dynamic_cnn_v1", "dynamic_cnn_v2"}


@any_channels
def test_a_masked_result_is_that_of_the_present_channels_alone(name):
    model = made(name).eval()
    x = images(7, 3, 40, 36)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    masked = model(x, mask)
    alone = torch.cat([model(x[b : b + 1, mask[b]]) for b in range(7)])
    torch.testing.assert_close(masked, alone, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(x, torch.ones(7, 3).bool()), model(x), rtol=1e-6, atol=1e-6)
    changed = torch.where(mask[:, :, None, None], x, x * 7 + 3)
    assert torch.equal(model(changed, mask), masked)


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


@pytest.mark.parametrize("name", ["simple_cnn", "pool_attention_cnn", "attention_cnn"])
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
