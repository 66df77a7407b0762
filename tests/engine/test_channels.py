import subprocess
import sys

import pytest
import torch

import models
from engine import channels
from engine.channels import RGB, Channels
from engine.errors import UserError

MANY = tuple(f"band {i}" for i in range(12))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_combinations_of_photos_come_in_the_reports_order():
    assert tuple(channels.every()) == ("RGB", "RG", "GB", "RB", "R", "G", "B")
    assert channels.every()["GB"] == (1, 2)


def test_few_channels_give_every_subset_once_the_full_set_first():
    found = channels.every(("a", "b", "c", "d"))
    assert len(found) == len(set(found.values())) == 15
    assert next(iter(found.items())) == ("abcd", (0, 1, 2, 3))
    assert list(found)[-1] == "d"
    assert channels.every(("red", "nir"))["red+nir"] == (0, 1)


def test_many_channels_give_all_some_of_each_size_and_each_alone():
    found = channels.every(MANY, seed=1)
    assert next(iter(found.items())) == ("all", tuple(range(12)))
    sizes = [len(places) for places in found.values()]
    assert sizes == [12, *(size for size in range(11, 1, -1) for _ in range(3)), *[1] * 12]
    assert found["5 of 12 #2"] == tuple(sorted(set(found["5 of 12 #2"])))
    assert found["band 7"] == (7,)
    assert channels.every(MANY, seed=1) == found != channels.every(MANY, seed=2)


def test_the_full_set_is_named_by_its_channels_where_they_are_few():
    assert RGB.full == "RGB"
    assert Channels(("red", "nir"), (0, 0), (1, 1)).full == "red+nir"
    assert Channels(MANY, (0,) * 12, (1,) * 12).full == "all"
    assert len(RGB) == 3


def test_what_the_user_asks_for_becomes_positions():
    assert channels.parse(("BR", "shuffled")) == {"BR": (2, 0), "shuffled": ()}
    assert channels.parse(("nir+red", "red"), ("red", "nir")) == {"nir+red": (1, 0), "red": (0,)}
    assert channels.parse(("all", "BR"))["RGB"] == (0, 1, 2)
    assert channels.parse(("10",), ("0", "1", "10")) == {"10": (2,)}


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (("RX",), "RGB", "channels 'RX': no channel 'X'; the data has R, G, B"),
        (("RR",), "RGB", "channels 'RR': a channel is named twice"),
        (("",), "RGB", "channels must name at least one of R, G, B"),
        (("RG", "B", "RG"), "RGB", "channels 'RG' are named 2 times"),
        (("red+blue",), ("red", "nir"), "channels 'red+blue': no channel 'blue'; the data has red, nir"),
    ],
)
def test_unknown_and_repeated_channels_are_refused(wanted, names, message):
    with pytest.raises(UserError) as caught:
        channels.parse(wanted, tuple(names))
    assert str(caught.value) == message


def test_subset_keeps_only_the_channels_present_and_zero_pad_blanks_the_rest():
    images = torch.arange(1.0, 13).reshape(1, 3, 2, 2)
    assert channels.select(images, (1, 2), "subset").equal(images[:, 1:])
    assert channels.select(images, (0, 1, 2), "subset") is images
    assert channels.select(images, (2, 0), "subset").equal(images[:, [2, 0]])
    padded = channels.select(images, (1, 2), "zero-pad")
    assert padded[:, 0].eq(0).all()
    assert padded[:, 1:].equal(images[:, 1:])


def test_a_model_that_knows_its_channels_is_shown_all_of_them_and_a_mask():
    images = torch.arange(1.0, 25).reshape(2, 3, 2, 2)
    padded, mask = channels.shown(images, (1, 2), "mask")
    assert padded.equal(channels.select(images, (1, 2), "zero-pad"))
    assert mask.tolist() == [[False, True, True]] * 2
    (subset,) = channels.shown(images, (1, 2), "subset")
    assert subset.equal(images[:, 1:])


@pytest.mark.parametrize(
    ("name", "options", "protocol"),
    [
        ("resnet18", {}, "zero-pad"),
        ("prism4_small", {}, "subset"),
        ("prism4_small", {"fixed_places": True}, "mask"),
    ],
)
def test_the_protocol_follows_from_what_a_model_takes(name, options, protocol):
    assert channels.protocol(models.create(name, **options)) == protocol


def test_sampled_masks_draw_the_count_uniformly_then_the_channels():
    masks = channels.sample_masks(60_000, 3, generator())
    counts = masks.sum(1).bincount(minlength=4) / len(masks)
    assert counts[0] == 0
    assert torch.allclose(counts[1:], torch.full((3,), 1 / 3), atol=0.01)
    # A channel is present with probability (1/3 + 2/3 + 3/3) / 3.
    assert torch.allclose(masks.float().mean(0), torch.full((3,), 2 / 3), atol=0.01)


def test_sampled_masks_repeat_with_the_seed():
    first, again, other = (channels.sample_masks(64, 3, generator(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_shuffled_channels_are_distinct_the_absent_last_each_order_as_likely():
    found = channels.shuffled(60_000, 3, generator())
    present = found >= 0
    assert present.equal(torch.arange(3) < present.sum(1, keepdim=True))
    counts = present.sum(1).bincount(minlength=4) / len(found)
    assert torch.allclose(counts, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), atol=0.01)
    orders = found[present.sum(1) == 3]
    codes = (orders * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)
    assert sorted(codes[0].tolist()) == [5, 7, 11, 15, 19, 21]  # 012, 021, 102, 120, 201 and 210 in base 3
    assert torch.allclose(codes[1] / len(orders), torch.full((6,), 1 / 6), atol=0.015)


def test_sources_keep_each_channel_at_its_place():
    assert channels.sources("off", 4, 3, generator()) is None
    found = channels.sources("on", 500, 3, generator())
    assert torch.equal(found, torch.arange(3).where(channels.sample_masks(500, 3, generator()), -1))
    assert torch.equal(channels.sources("shuffle", 9, 3, generator()), channels.shuffled(9, 3, generator()))
    with pytest.raises(ValueError, match="sampling must be off, on, drop or shuffle, got 'cycle'"):
        channels.sources("cycle", 4, 3, generator())


def test_a_batch_drops_channels_in_three_of_ten_cases_but_never_all():
    shared = generator()
    rows = []
    for _ in range(4000):
        found = channels.sources("drop", 2, 3, shared)
        assert torch.equal(found[0], found[1])
        rows.append(found[0] >= 0)
    kept = torch.stack(rows).sum(1)
    assert kept.min() == 1
    assert (kept < 3).float().mean() == pytest.approx(0.3, abs=0.03)
    assert (torch.stack(rows).float().mean(0).max() - torch.stack(rows).float().mean(0).min()) < 0.03
    assert channels.sources("drop", 4, 1, shared) is None


def test_channels_can_be_described_without_torch():
    code = "import sys, engine.data.channel_info as c; print(c.RGB.full, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "RGB False\n"
