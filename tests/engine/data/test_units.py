"""Images in other units than the training's are warned of, wherever they are given."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polychrome.engine.channels.names import Channels
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.files.statistics import measure
from polychrome.engine.data.given import image_sets
from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.opening import Wanted, open_set
from polychrome.engine.data.units import far, far_tensor
from tests.engine.data import photos

MEAN, DEVIATION = 754.0, 213.0


def warned(root, values, training, capsys):
    """Return what predict's and evaluate's ways of opening say of an image for a model of this training."""
    root.mkdir()
    for number in range(2):
        np.save(root / f"{number}.npy", values.astype(np.float32))
    channels = Channels(("a", "b"), training[:1] * 2, training[1:] * 2)
    trained, said = Trained(channels, "float32"), []
    image_sets((root / "0.npy",), trained, warn=said.append)
    images = ImageSet(root, ("x", "y"), {"test": Split(("0.npy", "1.npy"), (0, 1))})
    capsys.readouterr()
    open_set(images, Wanted("auto", photos.CPU, 1, trained=trained))
    printed = " ".join(" ".join(capsys.readouterr()).split())
    return len(said), printed.count("other units?")


@pytest.mark.parametrize("training", [(MEAN, DEVIATION), (0.0, 1.0), (-40.0, 1.0), (0.1, 3.0)])
@pytest.mark.parametrize(("factor", "told"), [(1, 0), (0.5, 0), (1e-2, 1), (1e-4, 1), (1e2, 1), (1e4, 1)])
def test_images_in_other_units_are_warned_of_once_by_predict_and_by_evaluate(tmp_path, capsys, training, factor, told):
    mean, deviation = training
    values = np.random.default_rng(0).normal(mean, deviation, (12, 10, 2)) * factor
    if factor == 0.5 and mean == -40:
        told = 1  # by its mean, twenty deviations away
    if factor == 1e2 and abs(mean) < deviation:
        values += 20 * deviation  # of values around 0 a greater spread alone tells nothing
    assert warned(tmp_path / "set", values, training, capsys) == (told, told)


def test_an_image_of_some_faint_channels_or_of_nothing_is_not_in_other_units(tmp_path, capsys):
    values = np.random.default_rng(0).normal(MEAN, DEVIATION, (12, 10, 2))
    for number, factors in enumerate(([1, 1e-4], [0, 0])):
        wide = values * factors
        assert warned(tmp_path / str(number), wide, (MEAN, 2 * DEVIATION), capsys) == (0, 0)


@pytest.mark.parametrize(("low", "high", "told"), [(0, 1, False), (-0.4, 1.4, False), (-0.6, 1, True), (0, 1.6, True)])
def test_of_8_bit_images_values_outside_their_range_tell_too(low, high, told):
    channels = Channels(("a", "b"), (0.5, 0.4), (0.2, 0.3))
    images = torch.full((2, 2, 3, 3), 0.5)
    images[1, 1, 0, 0], images[1, 1, 0, 1] = low, high
    found = far_tensor(images, channels, 1, True)
    assert (found is not None) == told
    assert found is None or f"channel b has values from {low} to {high}, the training had 0 to 1" in found
    assert far_tensor(images, channels, 1, True, torch.tensor([[True, True], [True, False]])) is None
    assert far_tensor(images, channels, 1, False) is None


@pytest.mark.parametrize(("factor", "told"), [(1, False), (1 / 40, False), (1 / 60, True), (0, False)])
@pytest.mark.parametrize("mean", [MEAN, 0.0])
def test_an_image_is_far_by_its_mean_or_by_size_in_all_of_its_channels(mean, factor, told):
    channels = Channels(("a", "b"), (mean,) * 2, (DEVIATION,) * 2)
    near = np.random.default_rng(0).normal(mean, DEVIATION, (20, 20, 2))
    near = mean + (near - near.mean((0, 1))) * DEVIATION / near.std((0, 1))
    everywhere = {0: 0, 1: 1}
    assert (far(measure(near * factor), everywhere, channels, "float32") is not None) == told
    assert far(measure(near * [1, factor]), everywhere, channels, "float32") is None
    assert (far(measure(near * [1, factor]), {0: 1}, channels, "float32") is not None) == told
    of_bytes = replace(channels, mean=(mean / 255,) * 2, std=(DEVIATION / 255,) * 2)
    assert (far(measure(near * factor), everywhere, of_bytes, "uint8") is not None) == told
