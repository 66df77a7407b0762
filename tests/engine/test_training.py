"""The parts of a plan: optimisers, schedules, frozen weights, passes over the data, steps in fp16."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polychrome.engine.data import loader
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.data.image_set import Split
from polychrome.engine.errors import NotFiniteError
from polychrome.engine.history import EpochRow
from polychrome.engine.training import trainer, transfer
from polychrome.engine.training.trainer import Hooks, fit
from tests.engine.small import PLAN, Net, Recorder
from tests.grids import grid


def rows(*accuracies):
    return [EpochRow("m", number, 0.1, 1.0, 0.5, 1.0, value) for number, value in enumerate(accuracies, 1)]


def test_learning_rates():
    assert [PLAN.rates(rows(*[0.1] * n))(0) for n in range(3)] == [0.1] * 3
    cosine = replace(PLAN, schedule="cosine", epochs=4)
    assert [cosine.rates(rows(*[0.1] * n))(0) for n in range(5)] == pytest.approx(
        [0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2, 0]
    )


@grid(
    parts=[(72, 8, 3), (40, 8, 3), (40, 4, 4), (37, 3, 5), (9, 2, 9)],  # images, of a batch, batches of a step
    schedule=("cosine", "linear", "onecycle"),
    sampling=("off", "cycle"),
)
def test_batches_that_make_a_step_have_the_rate_of_one_large_batch(
    images, tmp_path, monkeypatch, schedule, sampling, parts
):
    count, batch_size, accumulate = parts
    train = images.splits["train"]
    split = Split(*(tuple(column[i % 40] for i in range(count)) for column in (train.paths, train.labels, train.sizes)))
    images = replace(images, splits=images.splits | {"train": split})
    cycle = ((0, 1, 2), (1,)) if sampling == "cycle" else ()
    warmup = 0.0 if schedule == "onecycle" else 0.7
    plan = replace(PLAN, epochs=2, schedule=schedule, warmup=warmup, channel_sampling=sampling, cycle=cycle)
    monkeypatch.setattr(
        trainer.Trainer,
        "_forward_and_backward",
        lambda self, batch, *_: self.state.totals.add(
            torch.zeros(()), torch.zeros((), dtype=torch.int64), len(batch), batch.total, 0
        ),
    )

    def rates(size, accumulate):
        found, folder = [], tmp_path / f"{size} {accumulate}"
        monkeypatch.setattr(trainer.Trainer, "_update", lambda self: found.append(self.optimizer.param_groups[0]["lr"]))
        options = {"size": 16, "backend": "synthetic"}
        with (
            loader.Loader(images, "train", train=True, batch_size=size, **options) as train,
            loader.Loader(images, "val", train=False, batch_size=8, **options) as val,
        ):
            history = fit("m", Recorder(), train, val, replace(plan, accumulate=accumulate), folder)
        assert [row.lr for row in history.epochs] == found[:: len(found) // 2]
        return found

    assert rates(batch_size, accumulate) == rates(batch_size * accumulate, 1)


def test_no_process_repeats_the_random_numbers_of_another_or_of_another_epoch():
    """torch's generator on a CPU takes 32 bits of a seed."""
    keys = list(product((0, 1, 2, 7), range(1, 101), range(16)))
    assert len({trainer._mix(*key) % 2**32 for key in keys}) == len(keys)
    assert [trainer._mix(seed, 5, 0) for seed in (0, 3)] == [5, 3_000_014]  # as ever, of a process by itself


def test_each_process_draws_its_own_numbers_in_each_epoch(loaders, tmp_path, monkeypatch):
    begin, drawn = trainer.Trainer._begin, []

    def begun(self, epoch):
        for rank in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(trainer.distributed, "rank", lambda rank=rank: rank)
                begin(self, epoch)
            drawn.append(tuple(torch.rand(4).tolist()))

    monkeypatch.setattr(trainer.Trainer, "_begin", begun)
    fit("m", Recorder(), *loaders, PLAN, tmp_path)
    assert len(set(drawn)) == len(drawn) == 9


def test_plateau_cuts_the_rate_after_three_epochs_without_a_better_accuracy():
    plateau = replace(PLAN, schedule="plateau", epochs=20)
    course = [0.2, 0.3, 0.3, 0.29, 0.28, 0.3, 0.3, 0.5]
    found = [plateau.rates(rows(*course[:n]))(0) for n in range(len(course) + 1)]
    assert found == pytest.approx([0.1] * 6 + [0.01] * 3)


def test_plateau_starts_again_in_each_pass_of_one_augmentation():
    augmentations = Augmentations(("crop", "flip"), one_at_a_time=True, epochs=12)
    plateau = replace(PLAN, schedule="plateau", epochs=12, augmentations=augmentations)
    found = [plateau.rates(rows(*[0.3] * n))(0) for n in range(8)]
    assert found == pytest.approx([0.1] * 5 + [0.01] + [0.1] * 2)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_optimisers(name, kind):
    optimizer = replace(PLAN, optimizer=name, weight_decay=0.25).make_optimizer(Recorder())
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.9)) == (0.1, 0.25, 0.9)


class Scheduled(Recorder):
    """A tiny network with a buffer that each epoch sets."""

    def __init__(self):
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0))

    def start_epoch(self, epoch):
        self.temperature.fill_(34.0 - epoch)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_frozen_backbone_keeps_its_weights_and_statistics_and_what_epochs_set(loaders, tmp_path, ema):
    model = Scheduled()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit("m", model, *loaders, replace(PLAN, frozen=True, ema=ema), tmp_path / "m")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) is not key.startswith("head."), key
    assert transfer.head_of(model)[0] == "head"


def test_an_epoch_of_cycle_is_a_pass_for_each_combination(loaders, tmp_path):
    model = Recorder()
    plan = replace(PLAN, channel_sampling="cycle", cycle=((0,), (0, 2), (0, 1, 2)), epochs=2)
    done = []
    history = fit("m", model, *loaders, plan, tmp_path / "m", Hooks(batch=done.append))
    assert len(history.epochs) == 2
    assert sum(done) == 2 * (3 * 40 + 8)
    trained = model.seen[:15]
    for number, (images, mask) in enumerate(trained):
        present = torch.zeros(3, dtype=torch.bool)
        present[list(plan.cycle[number // 5])] = True
        assert torch.equal(mask, present.expand(8, -1))
        assert not images[:, ~present].any()
        assert images[:, present].any()
    # each pass has an order of its own
    assert not torch.equal(trained[0][0][:, 0], trained[5][0][:, 0])


def test_a_model_is_told_of_each_epoch(loaders, tmp_path):
    model = Recorder()
    fit("m", model, *loaders, PLAN, tmp_path / "m")
    assert model.started == [1, 2, 3]


def test_a_plan_for_some_channels_shows_these_alone(loaders, tmp_path):
    model = Recorder(in_channels=2)
    fit("m", model, *loaders, replace(PLAN, channels=("BR", (2, 0)), epochs=1), tmp_path / "m")
    assert {images.shape[1] for images, _ in model.seen} == {2}
    assert all(mask is None for _, mask in model.seen)


def test_augmentations_reach_the_images(loaders, tmp_path):
    def seen(*names):
        torch.manual_seed(0)
        model = Recorder()
        plan = replace(PLAN, augmentations=Augmentations(names), epochs=1)
        fit("m", model, *loaders, plan, tmp_path / "-".join(names))
        return torch.cat([images for images, _ in model.seen[:5]])

    plain, turned, gray = seen("flip"), seen("vflip"), seen("grayscale")
    upside_down = (turned == plain.flip(2)).flatten(1).all(1)
    assert torch.equal(turned[~upside_down], plain[~upside_down])
    assert 8 < upside_down.sum() < 32
    changed = ((gray - plain).abs() > 1e-3).flatten(1).any(1)
    assert 0 < changed.sum() < 16


def test_label_smoothing_raises_the_training_loss_alone(loaders, tmp_path):
    def first(smoothing):
        torch.manual_seed(0)
        plan = replace(PLAN, epochs=1, lr=1e-9, label_smoothing=smoothing)
        model = Recorder()
        with torch.no_grad():
            model.head.weight.mul_(30)
        return fit("m", model, *loaders, plan, tmp_path / str(smoothing)).epochs[0]

    plain, smooth = first(0.0), first(0.5)
    assert smooth.val_loss == pytest.approx(plain.val_loss, rel=1e-4)
    assert abs(smooth.train_loss - plain.train_loss) > 1e-3
    assert np.isfinite(smooth.train_loss)


BALANCED = replace(PLAN, class_weights="balanced", class_counts=(60, 30, 10, 0))


def test_class_weights_make_all_classes_count_alike_and_leave_the_mean_weight_at_one():
    weights = np.array(BALANCED.weights)
    counts = np.array(BALANCED.class_counts)
    np.testing.assert_allclose(weights * counts, [100 / 3, 100 / 3, 100 / 3, 0])
    assert PLAN.weights is None
    with pytest.raises(ValueError, match=r"a plan with class weights needs 4 counts, got \(1, 2\)"):
        replace(BALANCED, class_counts=(1, 2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_weighted_loss_is_the_mean_over_images_whatever_the_batches(smoothing, mixed):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    targets = F.one_hot(labels, 4).float() * 0.7 + F.one_hot(labels.roll(1), 4) * 0.3 if mixed else labels
    weights = torch.tensor(BALANCED.weights)
    loss = trainer._loss(logits, targets, smoothing, weights)
    every = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    share = 0.7 * weights[labels] + 0.3 * weights[labels.roll(1)] if mixed else weights[labels]
    assert loss.item() == pytest.approx((every * share).mean().item(), rel=1e-6)
    parts = [trainer._loss(logits[some], targets[some], smoothing, weights) for some in (slice(4), slice(4, 12))]
    assert (4 * parts[0] + 8 * parts[1]).item() / 12 == pytest.approx(loss.item(), rel=1e-6)
    plain = trainer._loss(logits, targets, smoothing, None)
    assert plain.item() == F.cross_entropy(logits, targets, label_smoothing=smoothing).item()


def test_class_weights_change_the_training_loss_alone(loaders, tmp_path):
    def first(plan):
        torch.manual_seed(0)
        return fit("m", Recorder(), *loaders, replace(plan, epochs=1, lr=1e-9), tmp_path / plan.class_weights).epochs[0]

    plain, weighted = first(PLAN), first(replace(BALANCED, class_counts=(1, 100, 100, 100)))
    assert weighted.val_loss == pytest.approx(plain.val_loss, rel=1e-4)
    assert weighted.train_loss > 5 * plain.train_loss  # a fourth of the images is of the first class


@pytest.mark.parametrize(("padded", "width"), [(True, 3), (False, 2)])
def test_a_network_for_one_combination_is_shown_that_alone(loaders, tmp_path, padded, width):
    model = Recorder(width)
    plan = replace(PLAN, epochs=1, channels=("RB", (0, 2)), padded=padded)
    assert plan.inputs(3) == width
    fit("m", model, *loaders, plan, tmp_path)
    for images, mask in model.seen:
        assert mask is None
        assert images.shape[1] == width
        assert (images[:, 1] == 0).all() == padded
        assert (images[:, [0, width - 1]] != 0).any()


class NoGradient(nn.Module):
    """A network whose gradient is NaN in some training batches, that of a square root at 0; the loss is finite."""

    def __init__(self, bad):
        super().__init__()
        self.net, self.bad, self.batches = Net(), bad, 0

    def forward(self, x):
        logits = self.net(x)
        self.batches += self.training
        if self.training and self.bad(self.batches - 1):
            logits = logits + ((logits - logits.detach()) ** 2).sqrt()
        return logits


FP16 = replace(PLAN, precision="fp16", lr=0.01)


@pytest.mark.parametrize(("batch_size", "epochs"), [(8, 3), (40, 2), (8, 12), (2, 1)])
def test_a_training_in_fp16_without_a_step_ends_with_an_error(images, tmp_path, batch_size, epochs):
    model = NoGradient(lambda number: True)
    before = [value.clone() for value in model.parameters()]
    options = {"size": 16, "batch_size": batch_size, "backend": "synthetic"}
    steps, said = 40 // batch_size, []
    with (
        loader.Loader(images, "train", train=True, **options) as train,
        loader.Loader(images, "val", train=False, **options) as val,
        pytest.raises(NotFiniteError) as caught,
    ):
        fit("m", model, train, val, replace(FP16, epochs=epochs), tmp_path, Hooks(say=said.append))
    ends = min(epochs, -(-17 // steps))  # after the scale is below 1, or after the last epoch
    kept = f"the checkpoint of epoch {ends - 1} is kept" if ends > 1 else "no checkpoint has been written"
    assert str(caught.value) == (
        f"m: {steps} of {steps} steps of epoch {ends} were skipped, as gradients in fp16 were not finite; the loss is "
        f"scaled by {2.0 ** (16 - ends * steps):g} now; {kept}; try --precision bf16 or fp32"
    )
    assert len(said) == ends - 1
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("skips", [0, 3, 7, 12])
def test_steps_that_are_skipped_until_the_scale_fits_are_told_and_the_training_goes_on(loaders, tmp_path, skips):
    model, said = NoGradient(lambda number: number < skips), []
    history = fit("m", model, *loaders, FP16, tmp_path, Hooks(say=said.append))
    assert len(history.epochs) == 3
    counts = [min(5, max(0, skips - 5 * epoch)) for epoch in range(3)]
    assert said == [
        f"m: {count} of 5 steps of epoch {epoch} were skipped, as gradients in fp16 were not finite; the loss is "
        f"scaled by {2.0 ** (16 - sum(counts[:epoch])):g} now"
        for epoch, count in enumerate(counts, 1)
        if count
    ]


def test_a_long_epoch_in_fp16_without_a_step_ends_the_training_whatever_the_scale(
    images, loaders, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "FIRST_SCALE", 2.0**40)
    options = {"size": 16, "batch_size": 2, "backend": "synthetic"}
    with (
        loader.Loader(images, "train", train=True, **options) as train,
        pytest.raises(NotFiniteError, match=r"20 of 20 steps of epoch 1 .* scaled by 1\.04858e"),
    ):
        fit("m", NoGradient(lambda number: True), train, loaders[1], FP16, tmp_path)
