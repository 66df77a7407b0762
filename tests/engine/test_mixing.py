"""Mixup and CutMix of a batch: what is mixed with what, and in which shares."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Beta

from polychrome.engine.training import trainer
from polychrome.engine.training.mixing import Mixing
from tests.engine.small import PLAN, Recorder

CLASSES = 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 16, 20, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.tensor([0, 1, 2, 3, 4, 1])


def shares(images, mixed):
    """Return, per image, the share of pixels that are its own and of those that are its neighbour's."""
    own = (mixed == images).all(1).float().mean((1, 2))
    return own, (mixed == images.roll(1, 0)).all(1).float().mean((1, 2))


def test_mixup_adds_each_image_and_its_neighbour(batch):
    images, labels = batch
    torch.manual_seed(3)
    mixed, targets = Mixing(0.4, 0, CLASSES)(images, labels)
    share = targets[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    one_hot = F.one_hot(labels, CLASSES).float()
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.roll(1, 0))
    assert targets.dtype == mixed.dtype == torch.float32


def test_cutmix_pastes_a_box_of_the_neighbour_and_counts_its_area(batch):
    images, labels = batch
    torch.manual_seed(1)
    mixed, targets = Mixing(0, 1.0, CLASSES)(images, labels)
    own, pasted = shares(images, mixed)
    assert 0 < own[0] < 1
    torch.testing.assert_close(own + pasted, torch.ones(6))
    torch.testing.assert_close(targets[torch.arange(6), labels], own)
    torch.testing.assert_close(targets[torch.arange(6), labels.roll(1, 0)], pasted)


def test_both_take_turns_by_chance(batch):
    images, labels = batch
    torch.manual_seed(0)
    both = Mixing(1.0, 1.0, CLASSES)
    batches = [shares(images, both(images, labels)[0]) for _ in range(400)]
    cut = sum(own[0] + pasted[0] > 0.999 for own, pasted in batches)
    assert 160 < cut < 240  # four standard deviations around 200


def test_a_share_of_the_batches_is_mixed(batch):
    images, labels = batch
    torch.manual_seed(0)
    some = Mixing(0, 1.0, CLASSES, share=0.25)
    found = [some(images, labels) for _ in range(400)]
    mixed = sum(not torch.equal(own, images) for own, _ in found)
    assert 65 < mixed < 135  # four standard deviations around 100
    assert all(torch.equal(targets, F.one_hot(labels, CLASSES)) for own, targets in found if torch.equal(own, images))


def test_the_shares_follow_the_beta_distribution(batch):
    images, labels = batch
    torch.manual_seed(0)
    mixup = Mixing(0.2, 0, CLASSES)
    found = torch.stack([mixup(images[:, :, :2, :2], labels)[1][0, 0] for _ in range(400)])
    assert found.mean().item() == pytest.approx(0.5, abs=0.09)
    assert found.std().item() == pytest.approx(Beta(0.2, 0.2).stddev.item(), abs=0.05)


def test_the_state_of_torchs_generator_repeats_the_mixing(batch):
    both = Mixing(0.5, 0.5, CLASSES)
    torch.manual_seed(5)
    both(*batch)
    state = torch.get_rng_state()
    first = [both(*batch) for _ in range(4)]
    torch.set_rng_state(state)
    for (mixed, targets), (again, targets_again) in zip(first, [both(*batch) for _ in range(4)], strict=True):
        assert torch.equal(mixed, again)
        assert torch.equal(targets, targets_again)


@pytest.mark.parametrize("alphas", [(0.5, 0), (0, 0.5)])
def test_layout_is_kept_and_the_batch_given_unchanged(batch, alphas):
    images, labels = batch
    before = images.clone(), labels.clone()
    mixed, targets = Mixing(*alphas, CLASSES)(images, labels)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_a_lone_image_stays_as_it_is(batch):
    images, labels = batch[0][:1], batch[1][1:2]
    mixed, targets = Mixing(0.5, 0.5, CLASSES)(images, labels)
    assert torch.equal(mixed, images)
    assert targets.tolist() == [[0, 1, 0, 0, 0]]


@pytest.mark.parametrize("alphas", [(0, 0), (-0.1, 0.5)])
def test_alphas_that_mix_nothing_are_refused(alphas):
    with pytest.raises(ValueError, match="mixup and cutmix must be 0 or more, one of them more"):
        Mixing(*alphas, CLASSES)


@pytest.mark.parametrize("sampling", ["on", "shuffle"])
def test_absent_channels_get_nothing_of_the_neighbours_whatever_the_network_is_told(loaders, tmp_path, sampling):
    plan = replace(PLAN, epochs=1, channel_sampling=sampling, mixup=1.0)
    told, untold = Recorder(), Recorder()
    untold.any_channels = False
    for name, model in (("told", told), ("untold", untold)):
        trainer.fit(name, model, *loaders, plan, tmp_path / name)
    masks = [mask for _, mask in told.seen if mask is not None]
    assert not torch.cat(masks).all()
    for (images, mask), (same, none) in zip(told.seen, untold.seen, strict=True):
        assert none is None
        assert torch.equal(images, same)
        if mask is not None:
            assert not (images.abs().amax((2, 3))[~mask]).any()


def test_training_accuracy_counts_the_class_of_the_larger_share(loaders, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Mixing, "__call__", lambda self, x, labels: (x, x.new_tensor([0.3, 0, 0.7, 0]).expand(len(x), -1))
    )
    model = Recorder()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    plan = replace(PLAN, epochs=1, lr=1e-6, mixup=1.0)
    assert trainer.fit("m", model, *loaders, plan, tmp_path).epochs[0].train_accuracy == 1


@pytest.mark.gpu
def test_mixing_does_not_make_the_host_wait(batch):
    images, labels = (item.cuda() for item in batch)
    mixings = [Mixing(0.5, 0, CLASSES), Mixing(0, 0.5, CLASSES), Mixing(0.5, 0.5, CLASSES)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [mixing(images, labels) for mixing in mixings]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mixed, targets in results:
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert targets.sum(1).tolist() == pytest.approx([1] * 6)
