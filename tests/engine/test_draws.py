"""What is drawn of an image follows from (seed, epoch, image): batches, ranks and resuming change no pixel."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data import loader
from polychrome.engine.data.augmentation import NAMES, Augmentations
from polychrome.engine.data.batches import Batch, Streamed, gathered, normalise
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.training.trainer import _images
from polychrome.kernels.augment import draw
from tests.engine.data import photos
from tests.engine.data.stores import squeezed
from tests.engine.small import PLAN

CPU, COUNT = torch.device("cpu"), 24
PER_IMAGE = replace(PLAN, augmentations=Augmentations(NAMES), subset_bias=0.5, subset_runs=0.5, cutout=0.3, gain=0.2)
EPOCH = 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return photos.write(tmp_path_factory.mktemp("photos"), photos.sizes(COUNT))


@pytest.fixture(scope="module")
def stores(images):
    """Where the images come from, by name: files, decoded images, and images squeezed to one size."""
    return {"files": None, "whole": WholeImages.load(images, 1), "uniform": squeezed(images, 48)}


@pytest.fixture(scope="module")
def shown(images, stores):
    """A function that returns what each image is shown as, and its channels that are present, by its index."""

    def read(store, sampling, batch_size=8, world_size=1, start=0):
        plan, found = replace(PER_IMAGE, channel_sampling=sampling), {}
        for rank in range(world_size):
            options = {"size": 20, "batch_size": batch_size, "rank": rank, "world_size": world_size, "workers": 0}
            options |= {"train": True, "seed": plan.seed, "backend": "torch", "augmentations": plan.augmentations}
            with loader.Loader(images, "train", store=stores[store], **options) as batches:
                read = batches.epoch(EPOCH, start, plan.draw(EPOCH, 0), plan.recipe(EPOCH))
                for number, batch in enumerate(read, start):
                    pixels, present = _images(batch, batches, plan, EPOCH, 0, number)
                    assert not found.keys() & set(batch.indices)
                    found |= zip(batch.indices.tolist(), zip(pixels, present, strict=True), strict=True)
        return found

    return read


@pytest.mark.parametrize("store", ["files", "whole", "uniform"])
@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(data=some.data())
def test_neither_batch_size_nor_ranks_nor_resuming_change_an_image(shown, store, data):
    sampling = data.draw(some.sampled_from(["on", "shuffle"]))
    world_size = data.draw(some.integers(1, 3))
    batch_size = data.draw(some.integers(2 * world_size, COUNT))
    start = data.draw(some.integers(0, -(-COUNT // batch_size) - 1))
    usual, other = shown(store, sampling), shown(store, sampling, batch_size, world_size, start)
    assert len(usual) == COUNT
    left_out = 0 < COUNT % batch_size < 2 * world_size
    assert len(other) == COUNT - start * batch_size - COUNT % batch_size * left_out
    for index, (pixels, present) in other.items():
        assert torch.equal(present, usual[index][1])
        assert torch.equal(pixels, usual[index][0])


def test_every_way_of_reading_draws_the_same(shown):
    """Files and decoded images are equal to the bit; squeezed ones have other pixels, but the same channels."""
    files, whole, uniform = (shown(store, "on") for store in ("files", "whole", "uniform"))
    for index, (pixels, present) in files.items():
        assert torch.equal(whole[index][0], pixels)
        assert torch.equal(uniform[index][1], present)
        assert (uniform[index][0] - pixels).abs().mean() < 0.15
    assert np.std([present.sum() for _, present in files.values()]) > 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_gains_and_cutouts_of_bytes_and_of_floats_are_the_same(dtype):
    """But for what is brighter than white: of floats the largest value is not known."""
    values = torch.randint(0, 200, (6, 5, 8, 8), generator=torch.Generator().manual_seed(0))
    channels = Channels(tuple("abcde"), (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5)
    gains = torch.linspace(0.75, 1.25, 30).view(6, 5)
    boxes = torch.tensor([[0, 0, 3, 3]] * 6)
    if dtype == torch.float32:
        channels = replace(channels, mean=tuple(255 * v for v in channels.mean), std=(51.0,) * 5)
    got = normalise(values.to(dtype), channels, brightness=gains, cutouts=boxes)
    expected = (values / 255 * gains[:, :, None, None] - torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])[:, None, None]) / 0.2
    expected[:, :, :3, :3] = 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_an_epoch_draws_other_pixels_and_channels_than_the_one_before(images):
    plan = replace(PER_IMAGE, channel_sampling="on")
    options = {"size": 20, "batch_size": COUNT, "train": True, "backend": "torch", "workers": 0}
    with loader.Loader(images, "train", augmentations=plan.augmentations, **options) as batches:
        first, second = (next(batches.epoch(epoch, recipe=plan.recipe(epoch))) for epoch in (1, 2))
    first, second = first.rows(first.indices.argsort()), second.rows(second.indices.argsort())
    assert np.array_equal(first.indices, second.indices)
    jitter = {"brightness", "contrast", "gamma", "grayscale"}
    assert first.drawn.keys() == {"vflips", "angles", "channels", "cutouts"} | jitter
    assert first.drawn["brightness"].shape == (COUNT, 3)
    for name, values in first.drawn.items():
        assert not torch.equal(values, second.drawn[name])
    assert not torch.equal(first.images, second.images)


ONE_NETWORK = {"channels": ("RB", (0, 2))}
WAYS = [
    *({"channel_sampling": sampling} for sampling in ("off", "on", "shuffle", "drop", "cycle")),
    *({"channel_sampling": sampling, "consistency": 1.0} for sampling in ("on", "drop", "cycle")),
    *({"channel_sampling": sampling, "cutmix": 1.0} for sampling in ("off", "on", "shuffle", "drop", "cycle")),
    ONE_NETWORK,
    ONE_NETWORK | {"padded": True},
    ONE_NETWORK | {"cutmix": 1.0},
    {"channels": ("BGR", (2, 1, 0))},
]


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_a_network_sees_does_not_depend_on_channels_that_are_not_shown(way, lacking):
    """Whatever is drawn of an image: with grayscale each of its channels would show the others."""
    plan = replace(PLAN, augmentations=Augmentations(NAMES), gain=0.2, cycle=((0,), (1, 2)), **way)
    recipe = replace(plan.recipe(1), scale=None, degrees=0.0, grayscale=0.9)
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1]]).bool().repeat(4, 1) if lacking else None
    indices, pixels = torch.arange(16), torch.randint(256, (2, 16, 3, 12, 12), dtype=torch.uint8)
    drawn = draw(recipe, indices, (12, 12), 0, 1, channels=3, present=present)._asdict()
    drawn = {name: value for name, value in drawn.items() if value is not None and name != "flips"}
    fixed = plan.channels[1] if plan.channels else (0, 1, 2)
    if plan.padded:
        fixed = [channel if channel in fixed else -1 for channel in range(3)]

    def shown(images, number):
        """Return what a network sees, and the channel of each of its inputs, -1 for none."""
        source = Streamed(images.contiguous(memory_format=torch.channels_last))
        batch = Batch(source, torch.zeros(16, dtype=torch.int64), indices.numpy(), 16, drawn, present)
        x, sources = _images(batch, SimpleNamespace(channels=RGB), plan, 1, number % plan.passes, number)
        if sources is None:
            return x, torch.tensor(fixed).expand(16, -1)
        return gathered(x, sources) if plan.mixes or plan.consistent else x, sources

    gray, whole, statistics = 0, 0, torch.tensor([RGB.mean, RGB.std])
    for number in range(12):
        x, sources = shown(pixels[0], number)
        seen = torch.stack([(sources == channel).any(1) for channel in range(3)], 1)
        other, _ = shown(torch.where(seen[:, :, None, None], *pixels), number)
        assert torch.equal(x, other)
        mean, std = statistics[:, sources.clamp_min(0)][..., None, None]
        values = (x * std + mean)[seen.all(1) if present is None else seen.all(1) & present.all(1)]
        gray += ((values - values[:, :1]).abs().amax((1, 2, 3)) < 1e-5).sum()
        whole += len(values)
    assert 0.5 * whole <= gray <= whole
