"""Mixup and CutMix of a batch: what is mixed with what, and in which shares."""

from dataclasses import replace
from typing import ClassVar

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
        Mixing, "__call__", lambda self, x, *labels: (x, x.new_tensor([0.3, 0, 0.7, 0]).expand(len(x), -1))
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


class Halves(Mixing):
    """Puts the left half of the neighbour into each image; `made` has what each batch was and what became of it."""

    made: ClassVar[list] = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._mix = self.halves

    def halves(self, images, labels):
        mixed = torch.cat([images.roll(1, 0)[..., :8], images[..., 8:]], 3)
        one_hot = F.one_hot(labels, self.num_classes).float()
        return mixed, (one_hot + one_hot.roll(1, 0)) / 2

    def __call__(self, images, labels, *more):
        found = super().__call__(images, labels, *more)
        self.made.append((images, labels, *found))
        return found


class Trained(Recorder):
    """Keeps what it is shown in training alone."""

    def forward(self, x, mask=None):
        logits = super().forward(x, mask)
        if not self.training:
            self.seen.pop()
        return logits


SAMPLED = [("on", 0.0), ("on", 1.0), ("shuffle", 0.0), ("drop", 0.0), ("drop", 1.0), ("cycle", 0.0), ("cycle", 1.0)]


def on_halves(loaders, folder, monkeypatch, sampling, consistency):
    """Yield, for each image of a training on halves, what it and its neighbour were, and what it became.

    Of each: pixels and label, pixels and label of the neighbour, mixed pixels and target, and the pixels that the model
    is shown with the channel of `mixed` of each input, None for an absent one.
    """
    monkeypatch.setattr(trainer, "Mixing", Halves)
    monkeypatch.setattr(Halves, "made", [])
    model, sampled = Trained(), {"channel_sampling": sampling, "consistency": consistency, "cycle": ((0,), (1, 2))}
    trainer.fit("m", model, *loaders, replace(PLAN, cutmix=1.0, **sampled), folder)
    assert any(mask is not None and not mask.all() for _, mask in model.seen)
    for (own, labels, mixed, targets), (shown, mask) in zip(Halves.made, model.seen, strict=True):
        mask = torch.ones(shown.shape[:2], dtype=torch.bool) if mask is None else mask
        assert not shown[~mask].any()
        for row in range(len(own)):
            channels = [None] * 3
            for place in mask[row].nonzero().flatten().tolist():
                possible = range(3) if sampling == "shuffle" else [place]
                (channels[place],) = [c for c in possible if torch.equal(shown[row, place], mixed[row, c])]
            assert channels != [None] * 3
            both = zip((own, labels), (own.roll(1, 0), labels.roll(1, 0)), (mixed, targets), strict=True)
            yield [(one[row], other[row], third[row]) for one, other, third in both], (shown[row], channels)


@pytest.mark.parametrize(("sampling", "consistency"), SAMPLED)
def test_the_image_mixed_in_is_seen_with_the_channels_that_are_shown(
    loaders, tmp_path, monkeypatch, sampling, consistency
):
    count = 0
    for ((own, other, _), (_, label, target)), (shown, channels) in on_halves(
        loaders, tmp_path, monkeypatch, sampling, consistency
    ):
        assert own.flatten(1).any(1).all()  # no channel is lost before images are mixed
        assert target[label] >= 0.5
        for place, channel in enumerate(channels):
            if channel is not None:
                assert torch.equal(shown[place, :, :8], other[channel, :, :8])
                assert torch.equal(shown[place, :, 8:], own[channel, :, 8:])
        count += 1
    assert count == 40 * 3 * (2 if sampling == "cycle" else 1)


@pytest.mark.parametrize(("sampling", "consistency"), [("off", 0.0), *SAMPLED])
def test_an_image_is_not_mixed_with_one_that_has_none_of_its_channels(
    sensors, tmp_path, monkeypatch, sampling, consistency
):
    alone = 0
    for ((own, other, mixed), (label, neighbours, target)), (_, channels) in on_halves(
        sensors, tmp_path, monkeypatch, sampling, consistency
    ):
        seen = any(other[channel].any() for channel in channels if channel is not None)
        expected = torch.zeros(4)
        expected[label] += 0.5
        expected[neighbours if seen else label] += 0.5
        assert torch.equal(target, expected)
        assert torch.equal(mixed, own) != seen
        alone += not seen
    assert alone >= 10
