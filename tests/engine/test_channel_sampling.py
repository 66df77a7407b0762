"""What training leaves out of the channels, or reorders."""

from dataclasses import replace

import pytest
import torch

from engine import channels
from engine.errors import UserError
from engine.training import fit
from tests.engine.small import PLAN, Recorder


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_off_leaves_everything_as_it_is():
    assert channels.sources("off", 4, 3, generator()) is None


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


def test_on_leaves_the_sampled_channels_in_their_places():
    found = channels.sources("on", 500, 5, generator())
    assert torch.equal(found >= 0, channels.sample_masks(500, 5, generator()))
    assert torch.equal(found.clamp_min(0), torch.arange(5).expand(500, -1) * (found >= 0))


def test_shuffle_is_a_random_choice_in_random_order():
    found = channels.sources("shuffle", 3000, 4, generator())
    assert torch.equal(found, channels.shuffled(3000, 4, generator()))
    assert len({tuple(row) for row in found[(found >= 0).all(1)].tolist()}) == 24


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


@pytest.mark.parametrize("way", ["on", "shuffle"])
@pytest.mark.parametrize(("bias", "shares"), [(1.0, (6, 3, 2)), (-1.0, (1, 2, 3)), (1e-9, (1, 1, 1))])
def test_a_bias_draws_few_channels_more_often_or_less(way, bias, shares):
    counts = (channels.sources(way, 6000, 3, generator(), bias) >= 0).sum(1)
    found = counts.bincount(minlength=4)[1:] / len(counts)
    assert torch.allclose(found, torch.tensor(shares) / sum(shares), atol=0.02)


def test_a_bias_leaves_which_channels_to_chance():
    kept = channels.sources("on", 6000, 4, generator(), 2.0) >= 0
    assert kept.any(1).all()
    assert torch.allclose(kept.float().mean(0), kept.float().mean().expand(4), atol=0.02)


@pytest.mark.parametrize(("bias", "count"), [(1e4, 1), (-1e4, 48)])
def test_however_large_a_bias_is_there_is_a_number_to_draw(bias, count):
    assert (channels.sample_masks(9, 48, generator(), bias).sum(1) == count).all()


def test_a_training_draws_by_its_plans_bias(loaders, tmp_path):
    model = Recorder()
    fit("m", model, *loaders, replace(PLAN, epochs=1, channel_sampling="on", subset_bias=10.0), tmp_path)
    masks = torch.cat([mask for _, mask in model.seen if mask is not None])
    assert len(masks) == 40
    assert (masks.sum(1) == 1).float().mean() > 0.9


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


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="got 'sometimes'"):
        channels.sources("sometimes", 1, 3, generator())
    with pytest.raises(ValueError, match="sampling must be off, on, drop or shuffle, got 'cycle'"):
        channels.sources("cycle", 4, 3, generator())


def test_cycle_follows_report_c_and_takes_few_channels_only():
    names = ("R", "G", "B")
    order = ["".join(names[place] for place in chosen) for chosen in channels.in_turn()]
    assert order == ["R", "RG", "G", "GB", "B", "RB", "RGB"]
    assert channels.in_turn(("a", "b")) == ((1,), (0,), (0, 1))
    with pytest.raises(UserError, match="takes up to 5 channels, got 6"):
        channels.in_turn(tuple("abcdef"))
