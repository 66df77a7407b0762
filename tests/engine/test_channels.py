import pytest
import torch

from engine import channels
from engine.errors import UserError


def test_combinations_come_in_the_reports_order():
    assert channels.all_combinations() == ("RGB", "RG", "GB", "RB", "R", "G", "B")


def test_combinations_of_other_channels_are_every_subset_once():
    found = channels.all_combinations(("a", "b", "c", "d"))
    assert len(found) == len(set(found)) == 15
    assert found[0] == "abcd"
    assert found[-1] == "d"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("RX", "channels 'RX': no channel 'X'; the data has R, G, B"),
        ("RR", "channels 'RR': a channel is named twice"),
        ("", "channels must name at least one of R, G, B"),
    ],
)
def test_unknown_and_repeated_channels_are_refused(wanted, message):
    with pytest.raises(UserError) as caught:
        channels.parse((wanted,))
    assert str(caught.value) == message


def test_subset_keeps_only_the_channels_present_and_zero_pad_blanks_the_rest():
    images = torch.arange(1.0, 13).reshape(1, 3, 2, 2)
    assert channels.select(images, "GB", "subset").equal(images[:, 1:])
    assert channels.select(images, "RGB", "subset").equal(images)
    padded = channels.select(images, "GB", "zero-pad")
    assert padded[:, 0].eq(0).all()
    assert padded[:, 1:].equal(images[:, 1:])


def test_sampled_masks_draw_the_count_uniformly_then_the_channels():
    masks = channels.sample_masks(60_000, 3, torch.Generator().manual_seed(0))
    counts = masks.sum(1).bincount(minlength=4) / len(masks)
    assert counts[0] == 0
    assert torch.allclose(counts[1:], torch.full((3,), 1 / 3), atol=0.01)
    # A channel is present with probability (1/3 + 2/3 + 3/3) / 3.
    assert torch.allclose(masks.float().mean(0), torch.full((3,), 2 / 3), atol=0.01)


def test_sampled_masks_repeat_with_the_seed():
    first, again, other = (channels.sample_masks(64, 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
