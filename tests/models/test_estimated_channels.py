"""`AnyChannels` with `fill="estimated"`: absent channels by the covariance of the channels."""

import pytest
import torch
from torch import nn

from polychrome import models
from polychrome.models.any_channels import MOST_AXES, RIDGE, AnyChannels
from tests.models.probes import assert_it_compiles_and_is_exported, images

COUNT = 5


def mixed(batch=64, channels=COUNT, sources=COUNT, seed=0, noise=0.0):
    """Return images [batch, channels, 16, 16] whose channels are mixes of `sources` independent ones, off zero."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(channels, sources, generator=torch.Generator().manual_seed(7))
    x = torch.einsum("cs,bshw->bchw", factors, torch.randn(batch, sources, 16, 16, generator=generator))
    return x + noise * torch.randn(x.shape, generator=generator) + torch.linspace(-2, 2, channels)[:, None, None]


def some(batch=64, channels=COUNT, share=0.5):
    return torch.rand(batch, channels, generator=torch.Generator().manual_seed(1)) < share


def filler(channels=COUNT):
    """Return an `AnyChannels` that gives what its network is shown."""
    return AnyChannels(nn.Identity(), channels, fill="estimated")


def test_absent_channels_are_the_mean_of_a_gaussian_under_the_condition_of_the_present_ones():
    x, mask = mixed(), some()
    mask[0] = False  # the means are shown
    found = filler().measure([x])(x, mask)
    pixels = x.movedim(1, 0).flatten(1).double()
    mean, covariance = pixels.mean(1, keepdim=True), torch.cov(pixels, correction=0)
    rest = RIDGE * covariance.diagonal().mean() * torch.eye(COUNT)
    for row, here in zip(range(len(x)), mask, strict=True):
        own, pixels = ~here, x[row].flatten(1).double()
        factor = torch.linalg.solve((covariance + rest)[here][:, here], covariance[here][:, own]).T
        wanted = mean[own] + factor @ (pixels[here] - mean[here])
        torch.testing.assert_close(found[row, own].flatten(1).double(), wanted, atol=1e-3, rtol=1e-3)
        assert torch.equal(found[row, here], x[row, here])


def test_channels_of_few_sources_are_known_from_a_few_of_them():
    """Forty channels of four sources: any eight tell all, where the nearest channel tells next to nothing."""
    x = mixed(channels=40, sources=4, noise=0.01)
    mask = torch.zeros(64, 40, dtype=torch.bool)
    mask[:, ::5] = True
    model = filler(40).measure([x[:32]])
    assert model.axes.shape == (40, MOST_AXES)
    estimated, nearest = model(x[32:], mask[32:]), AnyChannels(nn.Identity(), 40)(x[32:], mask[32:])
    errors = [(each - x[32:])[:, ~mask[0]].square().mean() / x[32:].var() for each in (estimated, nearest)]
    assert errors[0] < 0.01
    assert errors[1] > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("measured", [True, False])
def test_present_channels_keep_their_bits(dtype, measured):
    x, mask = mixed().to(dtype), some()
    model = filler()
    if measured:
        model.measure([mixed(seed=2)])
    found = model(x, mask)
    assert found.dtype == dtype
    assert torch.equal(found[mask], x[mask])
    assert torch.equal(model(x), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x, mask), found)


def test_until_it_is_measured_the_nearest_channel_stands_in():
    x, mask = images(64, COUNT, 8, 8), some()
    wanted = AnyChannels(nn.Identity(), COUNT)(x, mask)
    for value in (None, 3.0, 0.1):  # nor do images of one value tell how channels vary
        model = filler()
        if value:
            model.measure([torch.full((2, COUNT, 8, 8), value)])
        torch.testing.assert_close(model(x, mask), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_absent_channels_hold_does_not_matter(value):
    x, mask = mixed(), some()
    hidden = x.masked_fill(~mask[:, :, None, None], value)
    model = filler().measure([x])
    assert torch.equal(model(hidden, mask), model(x, mask))
    again = filler().measure([(hidden, mask)])
    torch.testing.assert_close(again.axes, filler().measure([(x, mask)]).axes)


def test_channels_that_some_images_lack_are_measured_on_the_others():
    x, mask = mixed(512), some(512, share=0.7)
    whole, parts = filler().measure([x]), filler().measure(zip(x.split(100), mask.split(100), strict=True))
    errors = [(model(x, mask) - x)[~mask].square().mean() for model in (whole, parts)]
    assert errors[1] < 1.1 * errors[0]
    torch.testing.assert_close(parts.mean, whole.mean, atol=0.1, rtol=0)


def chained(batch, seed):
    """Return images of seven channels: what the first two and the last two share is in the three between alone."""
    x = mixed(batch, 3, 3, seed)
    generator = torch.Generator().manual_seed(seed)
    ends = []
    for end in range(2):
        factors = torch.randn(2, 3, generator=torch.Generator().manual_seed(20 + end))
        own = 0.3 * torch.randn(batch, 2, 16, 16, generator=generator)
        ends.append(torch.einsum("cd,bdhw->bchw", factors, x) + own)
    return torch.cat([ends[0], x, ends[1]], 1)


def test_channels_that_are_never_together_are_estimated_by_those_between():
    """Two sensors with three channels in common: as if every image had all seven channels."""
    x, mask = chained(400, 0), torch.ones(400, 7, dtype=torch.bool)
    mask[:200, 5:] = mask[200:, :2] = False
    whole, parts = filler(7).measure([x]), filler(7).measure([(x, mask)])
    covariances = [each.axes.double() @ each.axes.double().T for each in (whole, parts)]
    torch.testing.assert_close(*covariances, atol=0.05 * covariances[0].max().item(), rtol=0)
    new, shown = chained(64, 1), torch.zeros(64, 7, dtype=torch.bool)
    shown[:, :2] = True
    errors = [(model(new, shown) - new)[:, 5:].square().mean() for model in (whole, parts)]
    assert errors[1] < 1.1 * errors[0]
    assert errors[0] < 0.7 * new[:, 5:].var()
    inverse = torch.linalg.inv(covariances[1] + torch.eye(7))  # with the rest, in its own unit
    scale = inverse.diagonal().sqrt()
    partial = (inverse / scale / scale[:, None]).abs()
    assert partial[:2, 5:].max() < 0.01 < partial[:2, 2:5].max()


def test_batches_and_one_large_image_are_measured_alike():
    x = mixed()
    one, large = filler().measure(x.split(7)), filler().measure([x.repeat_interleave(16, 2).repeat_interleave(16, 3)])
    for key in AnyChannels.MEASURED:
        torch.testing.assert_close(getattr(one, key).abs(), getattr(large, key).abs(), atol=1e-3, rtol=1e-3)


def test_measured_values_are_in_the_state_dict():
    model = filler().measure([mixed()])
    again = filler()
    again.load_state_dict(model.state_dict())
    assert {*model.state_dict()} == {*AnyChannels.MEASURED}
    x, mask = mixed(seed=3), some()
    assert torch.equal(again(x, mask), model(x, mask))
    assert not [*model.parameters()]


@pytest.mark.parametrize("name", ["prism4_small", "simple_2layer_cnn"])
def test_it_compiles_whole_and_is_exported_with_a_batch_of_any_size(name):
    model = models.create(name, 5, image_size=64, any_channels="estimated").eval()
    model.measure([images(4, 3, 64, 64)])
    assert_it_compiles_and_is_exported(model, images(3, 3, 64, 64), some(3, 3))


def test_a_network_for_any_channels_is_called_with_all():
    torch.manual_seed(0)
    model = models.create("prism4_small", 5, any_channels="estimated").eval().measure([images(4, 3, 32, 32)])
    x, mask = images(2, 3, 64, 64), torch.tensor([[True, False, True], [False, True, False]])
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.network(x))
        shown = filler(3)
        shown.load_state_dict({key: getattr(model, key) for key in AnyChannels.MEASURED})
        torch.testing.assert_close(model(x, mask), model.network(shown(x, mask)))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "images must have at least one image"),
        ([torch.zeros(2, 3, 4, 4)], ValueError, r"images must be \[batch, 5, height, width\], got \[2, 3, 4, 4\]"),
        ([torch.zeros(5, 4, 4)], ValueError, r"images must be \[batch, 5, height, width\], got \[5, 4, 4\]"),
        ([torch.full((2, 5, 4, 4), torch.nan)], ValueError, "images have values that are not finite"),
        ([(torch.zeros(2, 5, 4, 4), torch.ones(2, 5))], TypeError, "mask must be a bool tensor"),
        (
            [(torch.zeros(2, 5, 4, 4), torch.tensor([[True] * 4 + [False], [False] * 4 + [True]]))],
            ValueError,
            "channels 0 and 4 are never together in an image, nor joined by others: how they vary together is not",
        ),
    ],
)
def test_what_cannot_be_measured_is_told_and_changes_nothing(given, error, message):
    model = filler().measure([mixed()])
    before = model.axes.clone()
    with pytest.raises(error, match=message):
        model.measure(given)
    assert torch.equal(model.axes, before)


def test_ways_of_filling_in_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="fill must be one of nearest, estimated, got 'zeros'"):
        AnyChannels(nn.Identity(), 3, fill="zeros")
    with pytest.raises(ValueError, match="fill must be one of nearest, estimated, got 'zeros'"):
        models.create("simple_cnn", any_channels="zeros")
    with pytest.raises(ValueError, match="fill='nearest' has nothing to measure: make it with fill='estimated'"):
        AnyChannels(nn.Identity(), 3).measure([images(2, 3, 4, 4)])
