import pytest
import torch
from torch import nn

from polychrome import models
from polychrome.models.any_channels import AnyChannels
from tests.grids import usual
from tests.models.probes import assert_it_compiles_and_is_exported, images
from tests.models.test_models import ANY_CHANNELS, LARGE, NAMES

FIXED = sorted({*NAMES} - ANY_CHANNELS)
LONE = [[c == chosen for c in range(3)] for chosen in range(3)]


def seen(mask, x, **options):
    """Return what the network behind `AnyChannels` is shown of x [batch, channels, height, width]."""
    return AnyChannels(nn.Identity(), x.shape[1] if "channels" not in options else 3)(x, mask, **options)


def made(name="simple_cnn", **options):
    torch.manual_seed(0)
    return models.create(name, 5, image_size=64, **options).eval()


@pytest.mark.parametrize("name", usual(FIXED, *(name for name in FIXED if name not in LARGE)))
def test_every_network_gives_what_it_gave_and_takes_any_channels(name):
    alone, model = made(name), made(name, any_channels=True)
    x, mask = images(2, 3, 64, 64), torch.tensor([[True, False, True], [False, True, False]])
    with torch.no_grad():
        wanted = alone(x)
        assert torch.equal(model(x), wanted)
        torch.testing.assert_close(model(x, torch.ones(2, 3, dtype=torch.bool)), wanted)
        found = model(x, mask)
        torch.testing.assert_close(model(x[:1, [2, 0]], channels=[2, 0]), found[:1])
        torch.testing.assert_close(alone(seen(mask, x)), found)
    assert (model.any_channels, model.fixed_places, model.in_channels) == (True, True, 3)


def test_an_absent_channel_is_the_nearest_present_one_and_the_mean_of_two_as_near():
    x = images(6, 3, 5, 4)
    mask = torch.tensor([*LONE, [True, False, True], [True, True, False], [True, True, True]])
    found = seen(mask, x)
    for chosen in range(3):
        assert torch.equal(found[chosen], x[chosen, chosen].expand(3, -1, -1))
    assert torch.equal(found[3, ::2], x[3, ::2])
    torch.testing.assert_close(found[3, 1], (x[3, 0] + x[3, 2]) / 2)
    assert torch.equal(found[4, :2], x[4, :2])
    near, far = torch.tensor([-4.0, -16.0]).softmax(0)
    torch.testing.assert_close(found[4, 2], near * x[4, 1] + far * x[4, 0])
    assert torch.equal(found[5], x[5])


def test_channels_are_put_at_their_positions_whatever_their_order():
    x = images(2, 3, 4, 4)
    whole = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(seen(None, x[:, [2, 0, 1]], channels=(2, 0, 1)), x)
    assert torch.equal(seen(None, x[:, 1:], channels=[1, 2]), seen(torch.tensor([[False, True, True]] * 2), x))
    assert torch.equal(
        seen(whole[:, 1:], x[:, 1:], channels=torch.tensor([1, 2])), seen(None, x[:, 1:], channels=[1, 2])
    )
    mask = torch.tensor([[True, False], [True, True]])
    alone = seen(mask, x[:, :2], channels=[0, 1])
    assert torch.equal(alone[0], x[0, 0].expand(3, -1, -1))
    assert torch.equal(alone[1, :2], x[1, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_present_channels_keep_their_bits_and_the_image_its_layout(dtype, layout):
    x = images(4, 5, 6, 6).to(dtype).contiguous(memory_format=layout)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 2] = True
    found = seen(mask, x)
    assert (found.dtype, found.is_contiguous(memory_format=layout)) == (dtype, True)
    assert torch.equal(found[mask], x[mask])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seen(mask, x), found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_absent_channels_hold_does_not_matter(value):
    x, mask = images(3, 3, 8, 8), torch.tensor([*LONE])
    model = made(any_channels=True)
    with torch.no_grad():
        assert torch.equal(model(x.masked_fill(~mask[:, :, None, None], value), mask), model(x, mask))


def test_a_sample_without_channels_counts_as_zeros():
    assert torch.equal(seen(torch.zeros(2, 3, dtype=torch.bool), images(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


def test_gradients_reach_present_channels_alone():
    x, mask = images(3, 3, 4, 4).double().requires_grad_(), torch.tensor([*LONE])
    (seen(mask, x) * torch.arange(1.0, 4)[:, None, None]).sum().backward()
    assert torch.equal(x.grad, 6.0 * mask[:, :, None, None].expand_as(x))


def test_there_is_nothing_to_train_beside_the_network_and_training_is_kept():
    network = models.create("simple_cnn")
    model = AnyChannels(network.train())
    assert model.training
    assert [*model.state_dict()] == [f"network.{key}" for key in network.state_dict()]
    assert not AnyChannels(network.eval()).training


@pytest.mark.parametrize("channels", [1, 2, 17, 48])
def test_networks_of_any_width_are_wrapped(channels):
    model = made(any_channels=True, in_channels=channels)
    mask = torch.zeros(2, channels, dtype=torch.bool)
    mask[:, channels // 2] = True
    assert model(images(2, channels, 32, 32), mask).isfinite().all()


def test_the_channels_are_those_of_the_first_convolution_or_those_that_are_given():
    body = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 1)), nn.Conv2d(8, 2, 1))
    assert AnyChannels(body).in_channels == 4
    assert AnyChannels(nn.Flatten(), 7).in_channels == 7
    with pytest.raises(ValueError, match="in_channels must be given: Flatten has no nn"):
        AnyChannels(nn.Flatten())


@pytest.mark.parametrize("name", ["prism4_small", "pool_attention_cnn"])
def test_a_network_for_any_channels_is_not_wrapped(name):
    with pytest.raises(ValueError, match="takes any channels already"):
        models.create(name, any_channels=True)


@pytest.mark.parametrize(
    ("count", "mask", "channels", "error", "message"),
    [
        (2, None, None, ValueError, "a network for 3 channels needs the positions of x's 2: give `channels`"),
        (2, None, [0], ValueError, r"channels must be 2 different positions among 0 to 2, got \[0\]"),
        (2, None, [0, 0], ValueError, r"channels must be 2 different positions among 0 to 2, got \[0, 0\]"),
        (2, None, [0, 3], ValueError, r"channels must be 2 different positions among 0 to 2, got \[0, 3\]"),
        (2, None, [-1, 0], ValueError, r"channels must be 2 different positions among 0 to 2, got \[-1, 0\]"),
        (3, torch.ones(2, 2).bool(), None, ValueError, r"mask must be \[batch, channels\] = \[2, 3\], got \[2, 2\]"),
        (3, torch.ones(2, 3), None, TypeError, "mask must be a bool tensor, got torch.float32"),
    ],
)
def test_what_does_not_fit_is_told(count, mask, channels, error, message):
    with pytest.raises(error, match=message):
        AnyChannels(nn.Identity(), 3)(images(2, count, 4, 4), mask, channels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_weights_of_a_mean_are_not_rounded_to_whole_numbers(dtype):
    x, mask = torch.ones(2, 3, 4, 4, dtype=dtype), torch.tensor([[True, False, True]] * 2)
    model = AnyChannels(nn.Identity(), 3)
    assert torch.equal(model(x), x)  # a network may take whole numbers, where nothing is filled in
    with pytest.raises(TypeError, match="x must be"):
        model(x, mask)
    with pytest.raises(TypeError, match="x must be"):
        model(x[:, :2], channels=[0, 1])


def test_it_compiles_whole_and_is_exported_with_a_batch_of_any_size():
    model = made("simple_2layer_cnn", any_channels=True)
    assert_it_compiles_and_is_exported(model, images(3, 3, 64, 64), torch.tensor([*LONE]))
