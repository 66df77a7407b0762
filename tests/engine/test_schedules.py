"""Learning rates by position equal those that torch's schedulers step through."""

import pytest
import torch
from torch.optim import lr_scheduler

from polychrome.engine.training import schedules

EPOCHS = 12


def stepped(make, steps):
    """Return the rates of `steps` steps of a scheduler, from a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_and_linear_fall_as_in_torch():
    for name, make in (
        ("cosine", lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)),
        ("linear", lambda optimizer: lr_scheduler.LinearLR(optimizer, 1, 1e-30, total_iters=EPOCHS)),
    ):
        found = [schedules.factor(name, epoch, EPOCHS) for epoch in range(EPOCHS + 1)]
        assert found == pytest.approx(stepped(make, EPOCHS + 1), abs=1e-12)
        assert found[0] == 1
        assert schedules.factor(name, EPOCHS + 1, EPOCHS) == pytest.approx(0, abs=1e-12)


def test_cosine_falls_within_an_epoch():
    steps = 7
    expected = stepped(
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * steps), EPOCHS * steps
    )
    found = [
        schedules.factor("cosine", epoch + step / steps, EPOCHS) for epoch in range(EPOCHS) for step in range(steps)
    ]
    assert found == pytest.approx(expected, abs=1e-12)


def test_onecycle_equals_torchs():
    steps = 40
    total = EPOCHS * steps + 1  # torch's last step is at the end of the fall, our last position too
    rise = (schedules.ONECYCLE_RISE * (total - 1) + 1) / total  # it counts the steps of the rise, not the gaps
    expected = stepped(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=total, pct_start=rise, cycle_momentum=False
        ),
        total - 1,
    )
    found = [schedules.factor("onecycle", step / steps, EPOCHS) for step in range(total - 1)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[0] == pytest.approx(1 / 25)
    assert max(found) == found[round(0.3 * (total - 1))] == pytest.approx(1)
    assert schedules.factor("onecycle", EPOCHS, EPOCHS) == pytest.approx(1 / 25e4)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_warm_up_rises_in_a_line_and_leaves_the_rest_to_the_schedule(name):
    warmup = 3
    after = {
        "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS - warmup),
        "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, 1, 1e-30, total_iters=EPOCHS - warmup),
    }[name]

    def make(optimizer):
        rising = lr_scheduler.LinearLR(optimizer, schedules.WARMUP_START, total_iters=warmup)
        return lr_scheduler.SequentialLR(optimizer, [rising, after(optimizer)], milestones=[warmup])

    found = [schedules.factor(name, epoch, EPOCHS, warmup) for epoch in range(EPOCHS)]
    assert found == pytest.approx(stepped(make, EPOCHS), abs=1e-9)
    assert found[0] > 0
    assert schedules.factor(name, 0.5, EPOCHS, 0.5) == 1  # a part of an epoch
    assert schedules.factor(name, 0.25, EPOCHS, 0.5) == pytest.approx((1 + schedules.WARMUP_START) / 2)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule must be one of constant, cosine, linear, onecycle, got step"):
        schedules.factor("step", 0, EPOCHS)
    with pytest.raises(ValueError, match="onecycle has a warm-up of its own: warmup must be 0, got 2"):
        schedules.factor("onecycle", 0, EPOCHS, warmup=2)
    for warmup in (-1, EPOCHS):
        with pytest.raises(ValueError, match=f"under epochs=12, got {warmup}"):
            schedules.factor("cosine", 0, EPOCHS, warmup)


def test_plateau_cuts_the_rate_when_more_than_three_epochs_bring_no_better_accuracy():
    course = [0.2, 0.3, 0.3, 0.29, 0.28, 0.3, 0.3, 0.5]
    found = [schedules.plateau(course[:epochs], 0.1) for epochs in range(len(course) + 1)]
    assert found == pytest.approx([0.1] * 6 + [0.01] * 3)
    assert schedules.plateau([k / 50000 for k in range(45000, 45010)], 0.1) == 0.1  # one image more in each epoch
