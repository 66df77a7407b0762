import pytest
import torch
from torchvision.transforms.v2 import functional

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.batches import gathered, normalise

SOURCES = torch.tensor([[0, 1, 2], [-1, 1, -1], [2, -1, 0], [1, 1, 2]])


def bytes_of(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalised_photos_equal_torchvisions_and_are_channels_last(layout):
    images = bytes_of(2, 3, 5, 7)
    expected = functional.normalize(functional.to_dtype(images, torch.float32, scale=True), RGB.mean, RGB.std)
    got = normalise(images.contiguous(memory_format=layout))
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 5])
def test_stored_values_are_normalised_by_the_sets_own_statistics(count):
    names = tuple(map(str, range(count)))
    channels = Channels(names, tuple(100.0 * i for i in range(count)), tuple(2.0 + i for i in range(count)))
    images = torch.randn(3, count, 4, 6) * 50
    mean, std = torch.tensor(channels.mean)[:, None, None], torch.tensor(channels.std)[:, None, None]
    got = normalise(images, channels)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, (images - mean) / std)
    eight_bits = bytes_of(3, count, 4, 6)
    small = Channels(names, tuple(0.1 * i for i in range(count)), (0.5,) * count)
    expected = (eight_bits / 255 - torch.tensor(small.mean)[:, None, None]) / 0.5
    torch.testing.assert_close(normalise(eight_bits, small), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_sources_choose_and_blank_channels_for_each_sample(dtype):
    images = bytes_of(4, 3, 5, 7).to(dtype)
    whole, got = normalise(images), normalise(images, sources=SOURCES)
    for sample, row in enumerate(SOURCES.tolist()):
        for place, source in enumerate(row):
            expected = whole[sample, source] if source >= 0 else torch.zeros(5, 7)
            torch.testing.assert_close(got[sample, place], expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_upside_down_comes_first(dtype):
    images, vflips = bytes_of(4, 3, 8, 8).to(dtype), torch.tensor([True, False, True, False])
    turned = torch.where(vflips[:, None, None, None], images.flip(2), images)
    parameters = {"angles": torch.tensor([30.0, -20.0, 5.0, 90.0])} if dtype == torch.uint8 else {}
    got = normalise(images, sources=SOURCES, vflips=vflips, **parameters)
    torch.testing.assert_close(got, normalise(turned, sources=SOURCES, **parameters), atol=1e-4, rtol=0)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_gathered_takes_one_choice_for_all_samples_too():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(gathered(x, torch.tensor([2, -1])), torch.stack([x[:, 2], torch.zeros(2, 4, 5)], 1))
