import torch
from torchvision.transforms.v2 import functional

from engine.batch import MEAN, STD, normalise


def test_normalised_images_equal_torchvisions_and_are_channels_last():
    images = torch.randint(0, 256, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = functional.normalize(functional.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = normalise(images.contiguous(memory_format=layout))
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_absent_channels_are_zero_and_the_rest_as_they_were():
    images = torch.randint(0, 256, (4, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    present = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 1]]).bool()
    assert torch.equal(normalise(images, present), normalise(images) * present[:, :, None, None])
