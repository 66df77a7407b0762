import pytest
import torch

from polychrome.engine.data import augmentation
from polychrome.engine.data.augmentation import NAMES, Augmentations
from polychrome.engine.errors import UserError
from polychrome.kernels.augment import draw

INDICES = torch.arange(400)


def test_one_at_a_time_gives_each_augmentation_its_share_of_the_epochs():
    schedule = Augmentations(("crop", "flip", "jitter"), one_at_a_time=True, epochs=7)
    assert [schedule.at(epoch)[0] for epoch in range(1, 8)] == ["crop"] * 3 + ["flip"] * 2 + ["jitter"] * 2
    assert Augmentations(NAMES).at(5) == NAMES
    assert Augmentations((), one_at_a_time=True).at(1) == ()


@pytest.mark.parametrize("epochs", range(1, 10))
@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_unused_are_the_names_that_hold_in_no_epoch(epochs, one_at_a_time):
    schedule = Augmentations(NAMES, one_at_a_time, epochs)
    used = {name for epoch in range(1, epochs + 1) for name in schedule.at(epoch)}
    assert {*schedule.unused} == {*NAMES} - used
    assert len(schedule.unused) == (max(len(NAMES) - epochs, 0) if one_at_a_time else 0)


def test_each_name_draws_its_parameters_by_seed_epoch_and_index():
    def drawn_of(names, indices=INDICES, epoch=2):
        drawn = draw(Augmentations(names).recipe(epoch), indices, (8, 8), 3, epoch)._asdict()
        return {name: values for name, values in drawn.items() if values is not None}

    drawn, colours = drawn_of(NAMES), {"brightness", "contrast", "gamma", "grayscale"}
    assert drawn.keys() == {"crops", "flips", "vflips", "angles"} | colours
    assert drawn_of(("crop", "flip")).keys() == {"crops", "flips"}
    assert drawn_of(()) == {}
    assert drawn["angles"].abs().max() <= 15
    assert drawn["angles"].std() > 5
    assert (drawn["brightness"] - 1).abs().max() <= 0.2
    assert 0.4 < drawn["vflips"].float().mean() < 0.6
    assert 0.05 < drawn["grayscale"].float().mean() < 0.15
    again = drawn_of(NAMES, INDICES[7:9])
    assert all(torch.equal(again[name], drawn[name][7:9]) for name in drawn)
    assert not torch.equal(drawn_of(NAMES, epoch=3)["angles"], drawn["angles"])


def test_what_the_images_cannot_have_is_refused():
    augmentation.check(NAMES, "uint8", 3)
    augmentation.check(("crop", "flip", "vflip"), "float32", 13)
    with pytest.raises(UserError, match="rotation needs 8-bit images"):
        augmentation.check(("crop", "rotation"), "float32", 3)
    with pytest.raises(UserError, match="grayscale needs 3 channels, the data has 4"):
        augmentation.check(("grayscale",), "uint8", 4)
