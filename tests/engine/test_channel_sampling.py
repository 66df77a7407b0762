"""What training leaves out of the channels, or reorders."""

import pytest
import torch

from engine import channels
from engine.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_off_leaves_everything_as_it_is():
    assert channels.sources("off", 4, 3, generator()) is None


def test_on_leaves_the_sampled_channels_in_their_places():
    found = channels.sources("on", 500, 5, generator())
    assert torch.equal(found >= 0, channels.sample_masks(500, 5, generator()))
    assert torch.equal(found.clamp_min(0), torch.arange(5).expand(500, -1) * (found >= 0))


def test_shuffle_puts_a_random_choice_first_in_random_order():
    found = channels.sources("shuffle", 3000, 4, generator())
    counts = (found >= 0).sum(1)
    for row, count in zip(found.tolist(), counts.tolist(), strict=True):
        assert len(set(row[:count])) == count
        assert row[count:] == [-1] * (4 - count)
    assert all(abs((counts == size).float().mean() - 0.25) < 0.04 for size in (1, 2, 3, 4))
    orders = {tuple(row) for row in found[counts == 4].tolist()}
    assert len(orders) == 24


def test_drop_loses_a_choice_of_channels_in_three_batches_of_ten():
    losses = []
    drawn = generator()
    for _ in range(2000):
        found = channels.sources("drop", 3, 4, drawn)
        assert (found == found[:1]).all()
        present = found[0] >= 0
        assert torch.equal(found[0][present], torch.arange(4)[present])
        assert present.any()
        losses.append(4 - int(present.sum()))
    shares = [losses.count(size) / len(losses) for size in range(4)]
    assert abs(shares[0] - 0.7) < 0.04
    assert all(abs(share - 0.1) < 0.025 for share in shares[1:])
    assert channels.sources("drop", 3, 1, generator()) is None


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="got 'sometimes'"):
        channels.sources("sometimes", 1, 3, generator())


def test_cycle_follows_report_c_and_takes_few_channels_only():
    names = ("R", "G", "B")
    order = ["".join(names[place] for place in chosen) for chosen in channels.in_turn()]
    assert order == ["R", "RG", "G", "GB", "B", "RB", "RGB"]
    assert channels.in_turn(("a", "b")) == ((1,), (0,), (0, 1))
    with pytest.raises(UserError, match="takes up to 5 channels, got 6"):
        channels.in_turn(tuple("abcdef"))
