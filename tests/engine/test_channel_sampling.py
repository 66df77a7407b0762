"""What training leaves out of the channels, or reorders."""

from dataclasses import replace

import pytest
import torch

from polychrome.engine.channels import combinations
from polychrome.engine.channels import masks as channels
from polychrome.engine.errors import UserError
from polychrome.engine.training.trainer import fit
from tests.engine.small import PLAN, Recorder
from tests.grids import grid


def test_off_shows_every_image_whole(loaders, tmp_path):
    model = Recorder()
    fit("m", model, *loaders, replace(PLAN, epochs=1), tmp_path)
    assert all(mask is None for _, mask in model.seen)


def test_on_leaves_the_channels_that_are_drawn_in_their_places(loaders, tmp_path):
    model = Recorder()
    fit("m", model, *loaders, replace(PLAN, epochs=1, channel_sampling="on"), tmp_path)
    images, masks = (torch.cat(column) for column in zip(*model.seen[:5], strict=True))
    assert torch.equal(images.flatten(2).any(2), masks)
    assert masks.any(1).all()
    assert 5 < masks.all(1).sum() < 25  # a third


def test_shuffle_puts_the_channels_that_are_drawn_first(loaders, tmp_path):
    model = Recorder()
    fit("m", model, *loaders, replace(PLAN, epochs=1, channel_sampling="shuffle"), tmp_path)
    masks = torch.cat([mask for _, mask in model.seen[:5]])
    assert torch.equal(masks, torch.arange(3) < masks.sum(1, keepdim=True))


def test_a_training_draws_by_its_plans_bias(loaders, tmp_path):
    model = Recorder()
    fit("m", model, *loaders, replace(PLAN, epochs=1, channel_sampling="on", subset_bias=10.0), tmp_path)
    masks = torch.cat([mask for _, mask in model.seen if mask is not None])
    assert len(masks) == 40
    assert (masks.sum(1) == 1).float().mean() > 0.9


def test_drop_loses_a_choice_of_channels_in_three_batches_of_ten():
    draws = [channels.dropped(4, 0, 1, batch) for batch in range(4000)]
    found = torch.stack([torch.arange(4) if each is None else each for each in draws])
    present = found >= 0
    assert torch.equal(found.where(present, 0), torch.arange(4).where(present, 0))
    shares = present.sum(1).bincount(minlength=5) / len(found)
    assert torch.allclose(shares, torch.tensor([0, 0.1, 0.1, 0.1, 0.7]), atol=0.02)
    assert (present.float().mean(0) - present.float().mean()).abs().max() < 0.02
    assert all(channels.dropped(1, 0, 1, batch) is None for batch in range(20))


def test_what_a_batch_drops_follows_from_seed_draw_and_number():
    def drops(seed, draw):
        return [channels.dropped(6, seed, draw, batch) for batch in range(40)]

    first, again, others = drops(3, 2), drops(3, 2), (drops(4, 2), drops(3, 3))
    assert str(first) == str(again)
    assert all(str(other) != str(first) for other in others)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="must be one of off, on, shuffle, drop, cycle, got 'sometimes'"):
        replace(PLAN, channel_sampling="sometimes")


def test_cycle_follows_report_c_and_takes_few_channels_only():
    names = ("R", "G", "B")
    order = ["".join(names[place] for place in chosen) for chosen in combinations.in_turn()]
    assert order == ["R", "RG", "G", "GB", "B", "RB", "RGB"]
    assert combinations.in_turn(("a", "b")) == ((1,), (0,), (0, 1))
    with pytest.raises(UserError, match="takes up to 5 channels, got 6"):
        combinations.in_turn(tuple("abcdef"))


HAS = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)


@grid(mixup=(0.0, 0.5), consistency=(0.0, 1.0), sampling=("off", "on", "shuffle", "drop", "cycle"))
def test_no_way_shows_or_tells_of_a_channel_that_an_image_lacks(sensors, tmp_path, sampling, consistency, mixup):
    model, (train, val) = Recorder(), sensors
    plan = replace(PLAN, epochs=1, channel_sampling=sampling, consistency=consistency, mixup=mixup)
    plan = replace(plan, cycle=combinations.in_turn()) if sampling == "cycle" else plan
    fit("m", model, train, val, plan, tmp_path)
    requests = [request for turn in range(plan.passes) for request in train.requests(1, plan.draw(1, turn))]
    kept = torch.zeros(3)
    for request, (images, mask) in zip(requests, model.seen, strict=False):
        own = HAS[torch.from_numpy(request.indices % 3)]
        some, every = mask.chunk(2) if plan.consistent else (mask, own)
        assert torch.equal(images.flatten(2).any(2), mask)
        assert mask.any(1).all()
        assert torch.equal(every, own)
        if sampling == "shuffle":
            assert (some.sum(1) <= own.sum(1)).all()
        else:
            assert not (some & ~own).any()
            kept += torch.stack([(some == own).all(1)[own.sum(1) == count].float().sum() for count in (1, 2, 3)])
    assert sampling == "shuffle" or kept.min() > 0
    if sampling == "off":
        assert kept.sum() == 40


def test_an_image_without_any_channel_of_its_batch_is_shown_with_its_own(sensors, tmp_path):
    model, (train, val) = Recorder(), sensors
    plan = replace(PLAN, epochs=1, channel_sampling="cycle", cycle=((2,), (0, 1, 2)))
    fit("m", model, train, val, plan, tmp_path)
    for request, (_, mask) in zip(train.requests(1, 1), model.seen, strict=False):
        wanted = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
        assert torch.equal(mask, wanted[torch.from_numpy(request.indices % 3)])
