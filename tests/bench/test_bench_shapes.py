"""The calls on feature maps: the bytes they have to move, counted by hand, and data on which definitions agree."""

import pytest
import torch

from bench.ops import augment, channel_gate, spatial_attention
from bench.ops.feature_maps import FeatureMap, feature_maps_on
from polychrome.kernels.augment import Parameters
from polychrome.kernels.tensors import is_channels_last

# 2 * 4 * 3 * 3 * 4 = 288 bytes, 18 pixels
SMALL = FeatureMap(2, 4, 3, 3, torch.float32, torch.contiguous_format)


@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        (spatial_attention.Shape(SMALL), 3 * 288 + 24 * 18 + 4 * 98, 4 * 288 + 24 * 18 + 8 * 98),
        # weights: 2 * 4 + 2 + 4 * 2 + 4 = 22
        (channel_gate.Shape(SMALL, 2), 3 * 288 + 8 * (16 + 4) + 4 * 22, 4 * 288 + 4 * (48 + 4) + 8 * 22),
        (channel_gate.Shape(SMALL, None), 3 * 288 + 8 * 16 + 4 * 16, 4 * 288 + 4 * 48 + 8 * 16),
    ],
    ids=["spatial attention", "two layers", "one layer"],
)
def test_the_bytes_are_those_counted_by_hand(shape, forward, backward):
    assert (shape.forward_bytes(0), shape.backward_bytes()) == (forward, backward)


@pytest.mark.parametrize(("cache", "passes"), [(2 * 288, 2), (2 * 288 - 1, 3), (0, 3)])
def test_a_map_that_fits_half_the_cache_of_a_gpu_is_read_once(cache, passes):
    assert SMALL.forward_passes(cache) == passes


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_call_has_a_key_of_its_own(device):
    for op in (spatial_attention, channel_gate, augment):
        keys = [shape.key for shape in op.shapes_on(device)]
        assert len(set(keys)) == len(keys)
    assert spatial_attention.shapes_on("cuda")[0].key == "bfloat16 channels_last 64x256x16x16"
    assert channel_gate.shapes_on("cuda")[1].key == "bfloat16 channels_last 64x64x128x128 hidden 4"


def test_an_augmentation_reads_what_of_the_crops_lies_in_the_images():
    crops = torch.tensor([[-2, 1, 6, 4], [0, 0, 8, 10], [7, 9, 5, 5]])  # 4x4, all 80 pixels, and one
    nothing = Parameters(*[None] * len(Parameters._fields))
    drawn = nothing._replace(crops=crops, flips=torch.tensor([True, False, True]))
    images = torch.zeros(5, 8, 10, 2, dtype=torch.uint8)
    indices = torch.tensor([4, 0, 2])
    call = augment.Call(images, indices, drawn, [0.0] * 2, [1.0] * 2, 6, torch.bfloat16)
    parameters = 8 * 3 + 8 * 4 * 3 + 3 + 4 * 2 * 2
    assert call.forward_bytes() == 2 * (16 + 80 + 1) + 2 * (3 * 2 * 36) + parameters
    chosen = drawn._replace(channels=torch.tensor([[1], [0], [-1]]))
    assert call._replace(drawn=chosen).forward_bytes() == call.forward_bytes() - 2 * 3 * 36 + 8 * 3


def test_an_augmentation_takes_distinct_images_and_the_whole_recipe_leaves_nothing_out():
    plain, whole = (shape.call("cpu") for shape in augment.shapes_on("cpu")[::3])
    for call in (plain, whole):
        assert len(call.indices.unique()) == len(call.indices) == 8
    assert [name for name, value in plain.drawn._asdict().items() if value is not None] == ["crops", "flips"]
    # It was measured before images could be turned upside down.
    assert [name for name, value in whole.drawn._asdict().items() if value is None] == ["vflips"]


def test_no_channels_tie_for_the_largest():
    for like in feature_maps_on("cpu")[::4]:
        data = spatial_attention.Shape(like).data("cpu")
        first, second = data.leaves[0].detach().float().topk(2, dim=1).values.unbind(1)
        assert (first - second).min() > 0.2
        assert data.leaves[0].dtype == like.dtype
        assert is_channels_last(data.leaves[0]) == is_channels_last(data.grad) == (like.layout == torch.channels_last)
