import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from polychrome.kernels import fold_batch_norm
from polychrome.kernels.modules import DynamicConv2d
from polychrome.models.adaptive_channel_cnn import AdaptiveChannelCNN, AdaptiveChannels
from polychrome.models.attention_separable_cnn import AttentionSeparableCNN
from polychrome.models.naive_cnn import NaiveCNN
from tests.models.probes import images

# the smallest image each takes here
MADE = {
    "naive_cnn": (NaiveCNN, {"image_size": 32}, 32),
    "adaptive_channel_cnn": (AdaptiveChannelCNN, {}, 64),
    "attention_separable_cnn": (AttentionSeparableCNN, {"image_size": 32}, 32),
}
every_model = pytest.mark.parametrize("name", MADE)
fixed_size = pytest.mark.parametrize("constructor", [NaiveCNN, AttentionSeparableCNN])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()


def made(name, **options):
    torch.manual_seed(0)
    constructor, small, _ = MADE[name]
    return constructor(**small, **options)


def adaptive():
    """Return the adaptive network for evaluation, its statistics not those it starts with."""
    torch.manual_seed(0)
    return stirred(AdaptiveChannelCNN()).eval()


def stirred(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.05, 0.2)
    return model


@pytest.mark.parametrize(
    ("constructor", "channels", "size"),
    [(NaiveCNN, 1, 128), (NaiveCNN, 2, 128), (AttentionSeparableCNN, 3, 224), (AttentionSeparableCNN, 1, 224)],
)
def test_logits_at_the_reported_image_size(constructor, channels, size):
    model = constructor(num_classes=7, in_channels=channels).eval()
    with torch.no_grad():
        assert model(images(2, channels, size, size)).shape == (2, 7)


@fixed_size
def test_the_flatten_follows_the_image_size(constructor):
    model = constructor(image_size=48).eval()
    last = nn.Sequential(*model.features)(images(1, 3, 48, 48))
    assert last.shape[2:] == (3, 3)
    assert model(images(2, 3, 48, 48)).shape == (2, 50)


@fixed_size
def test_an_image_of_another_size_names_the_size_wanted(constructor):
    model = constructor(image_size=32)
    for height, width in [(48, 32), (32, 33)]:
        with pytest.raises(ValueError, match=f"^images must be 32x32, got {height}x{width}: resize them, or make"):
            model(images(1, 3, height, width))


@fixed_size
@pytest.mark.parametrize("image_size", [0, -16, 15, 32.0])
def test_an_image_size_that_is_too_small_or_no_whole_number_names_the_smallest(constructor, image_size):
    wanted = f"^image_size must be a whole number of at least 16 pixels, got {image_size}$"
    with pytest.raises(ValueError, match=wanted):
        constructor(image_size=image_size)


@fixed_size
@pytest.mark.parametrize(("image_size", "left"), [(16, 1), (31, 1), (84, 5), (97, 6), (100, 6)])
def test_pooling_rounds_other_image_sizes_down(constructor, image_size, left):
    model = constructor(image_size=image_size).eval()
    x = images(2, 3, image_size, image_size)
    with torch.no_grad():
        maps = model.features(x)
        assert maps.shape[2:] == (left, left)
        torch.testing.assert_close(model(x), model.head(maps))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13, 20, 32, 40])
def test_adaptive_takes_any_channel_count(channels):
    model = AdaptiveChannelCNN(num_classes=7).eval()
    with torch.no_grad():
        assert model(images(1, channels, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (84, 84), (97, 97), (224, 224), (64, 100)])
def test_adaptive_takes_any_spatial_size_from_64(height, width):
    with torch.no_grad():
        assert adaptive()(images(1, 3, height, width)).shape == (1, 50)


def test_adaptive_names_the_smallest_size():
    with pytest.raises(ValueError, match=r"^images must be at least 64x64, got 63x80$"):
        AdaptiveChannelCNN()(images(1, 3, 63, 80))


def test_adaptive_pooling_changes_nothing_at_128():
    model = adaptive()
    x = images(1, 3, 128, 128)
    with torch.no_grad():
        y = x
        for module in model.features:
            y = model.pool(module(y))
        assert y.shape == (1, 512, 2, 2)
        torch.testing.assert_close(model(x), model.head[1:](y))


@pytest.mark.parametrize(("channels", "means", "maxes"), [(1, 7, 8), (2, 7, 7), (3, 6, 7), (13, 1, 2)])
def test_a_module_by_hand(channels, means, maxes):
    torch.manual_seed(0)
    module = stirred(AdaptiveChannels(32)).eval()
    x = images(2, channels, 8, 10)
    result = module.summary(torch.stack([x.mean(1), x.amax(1)], 1))
    joined = torch.cat([x, result], 1)
    fill = [joined.mean(1, keepdim=True)] * means + [joined.amax(1, keepdim=True)] * maxes
    filled = torch.cat([joined, *fill], 1)
    assert filled.shape == (2, 32, 8, 10)
    torch.testing.assert_close(module(x), module.conv(filled))


def test_a_pooling_module_by_hand():
    torch.manual_seed(0)
    module = stirred(AdaptiveChannels(16, pool=True)).eval()
    x = images(2, 8, 8, 10)
    result = module.summary(torch.stack([x.mean(1), x.amax(1)], 1))
    joined = nn.functional.max_pool2d(torch.cat([x, result], 1), 2)
    torch.testing.assert_close(module(x), module.conv(joined))


@pytest.mark.parametrize("channels", [20, 32, 40])
def test_a_wide_input_is_cut(channels):
    torch.manual_seed(0)
    module = stirred(AdaptiveChannels(32)).eval()
    x = images(2, channels, 8, 8)
    filled = x[:, :32]
    if channels < 32:
        filled = torch.cat([x, module.summary(torch.stack([x.mean(1), x.amax(1)], 1))], 1)[:, :32]
    torch.testing.assert_close(module(x), module.conv(filled))


def test_a_masked_result_is_that_of_the_present_channels_alone():
    model = adaptive()
    x = images(7, 3, 64, 64)
    with torch.no_grad():
        masked = model(x, MASK)
        alone = torch.cat([model(x[b : b + 1, MASK[b]]) for b in range(7)])
        torch.testing.assert_close(masked, alone, rtol=1e-4, atol=1e-5)
        assert (masked[0] - masked[1]).abs().max() > 1e-3
        torch.testing.assert_close(model(x, torch.ones(7, 3).bool()), model(x), rtol=1e-4, atol=1e-5)
        changed = torch.where(MASK[:, :, None, None], x, x * 7 + 3)
        assert torch.equal(model(changed, MASK), masked)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("present", [1, 3, 13, 16, 20, 31, 32, 36])
def test_a_masked_module_sees_the_present_channels_alone(present, pool):
    torch.manual_seed(0)
    module = stirred(AdaptiveChannels(32, pool)).eval()
    x = images(2, 40, 8, 6)
    mask = torch.zeros(2, 40).bool()
    mask[0, torch.randperm(40)[:present]] = True
    mask[1, 5] = True
    expected = torch.cat([module(x[b : b + 1, mask[b]]) for b in range(2)])
    torch.testing.assert_close(module(x, mask), expected, rtol=1e-4, atol=1e-5)


def test_the_mask_path_has_the_gradients_of_the_present_channels():
    torch.manual_seed(0)
    module = stirred(AdaptiveChannels(32)).eval()
    x = images(1, 3, 8, 8)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    parameters = list(module.parameters())
    weights = images(1, 32, 8, 8, seed=1)
    got = torch.autograd.grad((module(one, torch.tensor([[True, False, True]])) * weights).sum(), [one, *parameters])
    expected = torch.autograd.grad((module(other[:, [0, 2]]) * weights).sum(), [other, *parameters])
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-4)
    assert not got[0][:, 1].any()


def test_a_sample_without_channels_is_refused():
    with pytest.raises(ValueError, match="at least one channel in every sample, got none in sample 1"):
        adaptive()(images(2, 3, 64, 64), torch.tensor([[True, True, True], [False, False, False]]))


@every_model
def test_a_result_does_not_depend_on_the_other_samples(name):
    model, size = stirred(made(name)).eval(), MADE[name][2]
    x = images(3, 3, size, size)
    others = torch.cat([x[:1], images(2, 3, size, size, seed=1) * 9])
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], model(others)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@every_model
def test_a_gradient_step_lowers_the_loss(name):
    model, size = made(name), MADE[name][2]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, labels = images(4, 3, size, size), torch.tensor([0, 1, 2, 3])
    before = nn.functional.cross_entropy(model(x), labels)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # zero by construction: a bias before a BatchNorm; zero where its ReLU is off: the attention's one hidden channel
    one_hidden = "summary.0.attention"
    assert all(p.grad.any() for n, p in model.named_parameters() if n.endswith("weight") and one_hidden not in n)
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    with torch.no_grad():
        assert nn.functional.cross_entropy(model(x), labels) < before - 1e-3


def test_attention_separable_by_hand():
    model = made("attention_separable_cnn").eval()
    x = images(2, 3, 32, 32)
    y = x
    for depthwise, pointwise, gate, *_ in model.features:
        y = pointwise(depthwise(y))
        gates = (y.mean((2, 3)) @ gate.fc2.weight.flatten(1).T).sigmoid()
        y = nn.functional.max_pool2d(y * gates[:, :, None, None], 2)
    torch.testing.assert_close(model(x), y.flatten(1) @ model.head[-1].weight.T + model.head[-1].bias)


def test_the_attention_has_the_reported_sizes_and_annealing():
    model = AdaptiveChannelCNN()
    layers = [module for module in model.modules() if isinstance(module, DynamicConv2d)]
    sizes = {(layer.in_channels, layer.attention.fc1.out_channels) for layer in layers}
    assert sizes == {(2, 1), (32, 9), (64, 17), (128, 33), (256, 65), (512, 129)}
    assert len(layers) == 10
    assert all(layer.experts == 4 and layer.attention.temperature == 34 for layer in layers)
    falling = []
    for epoch in range(1, 14):
        model.start_epoch(epoch)
        temperatures = {layer.attention.temperature.item() for layer in layers}
        assert len(temperatures) == 1
        falling += temperatures
    assert falling == pytest.approx([34, 31, 28, 25, 22, 19, 16, 13, 10, 7, 4, 1, 1])
    with pytest.raises(ValueError, match=r"^epochs count from 1, got 0$"):
        model.start_epoch(0)


def test_the_temperature_of_an_epoch_sharpens_the_mixing():
    model = adaptive()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        model.start_epoch(1)
        soft = model(x)
        model.start_epoch(12)
        sharp = model(x)
        assert (sharp - soft).abs().max() > 1e-4
        model.start_epoch(1)
        assert torch.equal(model(x), soft)


def test_the_parts_of_a_module_can_be_fused():
    model = adaptive()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        for module in model.features:
            module.summary, module.conv = fold_batch_norm(module.summary), fold_batch_norm(module.conv)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("adaptive_channel_cnn", {"polychrome::channel_stats": 6, "polychrome::dynamic_conv2d": 10}),
        ("attention_separable_cnn", {"polychrome::channel_gate": 4}),
    ],
)
def test_the_ops_of_this_project_are_called(name, counts):
    model, size = made(name).eval(), MADE[name][2]
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(images(1, 3, size, size))
    called = {event.key: event.count for event in profile.key_averages() if event.key.startswith("polychrome::")}
    assert called == counts


def test_one_compilation_of_a_masked_module_serves_every_batch_size():
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    torch.manual_seed(0)
    module = stirred(AdaptiveChannels(32))
    compiled = torch.compile(module.eval(), fullgraph=True, backend=backend)
    for batch in (2, 3, 5, 7):
        x, mask = images(batch, 3, 8, 8), MASK[:batch].clone()
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(mask, 0)
        torch.testing.assert_close(compiled(x, mask), module(x, mask), rtol=1e-4, atol=1e-5)
    assert backend.frame_count == 1


@every_model
def test_bfloat16_autocast_stays_near_float32(name):
    model, size = stirred(made(name)).eval(), MADE[name][2]
    x = images(2, 3, size, size)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(x)
    assert got.isfinite().all()
    assert (got - expected).norm() <= 0.03 * expected.norm()
