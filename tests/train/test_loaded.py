"""A loaded network in Python: what `preprocess` makes, which channels it has, and what is refused in a line."""

import re
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

import polychrome
from polychrome.engine.errors import UserError
from polychrome.engine.training import checkpoint
from polychrome.train import networks
from polychrome.train.data import summary
from polychrome.train.settings import variants
from tests.engine.data.test_sensors import npy
from tests.train.test_reading import CASES, SETTINGS, arrays, drawn, folder, opened_set, txt

ENTRIES = ("simple_cnn", "prism4_small", "prism4_small+places", "pool_attention_cnn")
SENSORS = CASES["names of sensors"][0]  # 0.tif has red, green and nir, 1.tif nir and red, 2.tif green


def network(tmp_path, files, entry="simple_cnn", label=None, **more):
    """Return the checkpoint of an untrained network for a data folder of these files, as a run keeps it.

    label: the combination of channels that it is for, of a model with a network for each.
    """
    opened = opened_set(folder(tmp_path / "data", files))
    names, settings = opened.images.channels.names, replace(SETTINGS, image_size=32)
    own = label.split("+") if label else names
    torch.manual_seed(0)
    made = networks.create(entry, variants.of(settings, entry), 2, len(own)).eval()
    combinations = {label: own} if label else {}
    results = {"task": "task1", "data": summary(opened), "models": {}, "combinations": combinations}
    content = {"name": f"{entry} {label}" if label else entry, "model": made.state_dict()}
    copy = {"config": settings.to_toml(), "results": results}
    checkpoint.save(tmp_path / "best.pt", content | {"run": copy} | more)
    return tmp_path / "best.pt"


def loaded(tmp_path, files, entry="simple_cnn", label=None, **options):
    return polychrome.load(network(tmp_path, files, entry, label), device="cpu", **options)


def shares(model, x, channels=None):
    """Return what a call makes of x: the probabilities of each image, by class."""
    rows = model(x, channels).softmax(1).tolist()
    return [dict(zip(model.classes, row, strict=True)) for row in rows]


@pytest.mark.parametrize("channels", [None, "red+green+nir", "nir+red"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_call_on_what_preprocess_makes_is_predict_whichever_channels_an_image_has(tmp_path, entry, channels):
    model = loaded(tmp_path, SENSORS, entry)
    root, count = tmp_path / "data", len(channels.split("+")) if channels else 3
    files = [root / name for name in SENSORS]
    array = drawn(count, 7).astype(np.float32)
    accepted = 0
    for given in (*files, files, root, array, [array, files[0]], [*files[::-1], array]):
        found = None
        with suppress(UserError):
            found = model.predict(given, channels)
            found = found if isinstance(found, list) else [found]
        if found is None or any(each.reason for each in found):
            with pytest.raises(UserError):
                model.preprocess(given, channels)
            continue
        accepted += 1
        for got, each in zip(shares(model, model.preprocess(given, channels), channels), found, strict=True):
            assert got == pytest.approx(each.probabilities, abs=1e-6)
    assert accepted == {None: 8, "red+green+nir": 3, "nir+red": 4}[channels]


@pytest.mark.parametrize("entry", ENTRIES)
def test_channels_that_an_image_lacks_are_never_numbers(tmp_path, entry):
    model = loaded(tmp_path, SENSORS, entry)
    x = model.preprocess([tmp_path / "data/1.tif", tmp_path / "data/0.tif"])
    assert x.isnan().all(3).all(2).tolist() == [[False, True, False], [False] * 3]
    array = model.preprocess(drawn(2, 0).astype(np.float32), "nir+red")
    assert array.isnan().all(3).all(2).tolist() == [[False, True, False]]
    named = model.predict(drawn(2, 0).astype(np.float32), "nir+red").probabilities
    assert shares(model, array, "nir+red") == [pytest.approx(named, abs=1e-6)]
    if entry != "simple_cnn":
        dark = model(torch.nan_to_num(x[:1])) - model(x[:1])  # zeros are values of a channel that is there
        assert dark.abs().max() > 1e-4
    for channels in ("red+green", "green"):
        with pytest.raises(UserError, match=re.escape(f"x lacks green of channels {channels}: give those of preproc")):
            model(x, channels)
    with pytest.raises(UserError, match="x has an image without a single channel"):
        model(torch.full((1, 3, 32, 32), torch.nan))


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(1, 2, 32, 32),
        torch.rand(3, 32, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.rand(1, 3, 40, 40),
    ],
)
def test_a_call_refuses_what_preprocess_does_not_make(tmp_path, x):
    model = loaded(tmp_path, arrays() | txt("red", "green", "nir"))
    with pytest.raises(UserError, match=r"x must be float32 \[batch, 3, 32, 32\], of preprocess, got "):
        model(x)


def test_preprocess_keeps_the_order_of_files_that_are_read_in_groups(tmp_path):
    """Files below one channels.txt are a group: the first and the last of these three."""
    model = loaded(tmp_path, arrays() | txt("red", "green", "nir"))
    new = tmp_path / "new"
    for number, name in enumerate("abc"):
        (new / name).mkdir(parents=True)
        (new / name / "x.npy").write_bytes(npy(drawn(3, number)))
    (new / "channels.txt").write_text("red\ngreen\nnir\n")
    (new / "b/channels.txt").write_text("nir\ngreen\nred\n")
    x, found = model.preprocess(new), model.predict(new)
    assert [each.path.rpartition("new/")[2] for each in found] == ["a/x.npy", "b/x.npy", "c/x.npy"]
    for got, each in zip(shares(model, x), found, strict=True):
        assert got == pytest.approx(each.probabilities, abs=1e-6)
