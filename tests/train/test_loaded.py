"""A loaded network in Python: what `preprocess` makes, which channels it has, and what is refused in a line."""

import csv
import io
import re
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from PIL import Image

import polychrome
from polychrome.engine import export
from polychrome.engine.data.given import FEW
from polychrome.engine.errors import UserError
from polychrome.engine.machine import hardware
from polychrome.engine.machine.workers import cpus
from polychrome.engine.training import checkpoint
from polychrome.train import networks
from polychrome.train.commands import predict
from polychrome.train.data import summary
from polychrome.train.run import main
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings
from polychrome.train.trained import Prediction
from tests.conftest import draw
from tests.engine.data.image_kinds import npy
from tests.train.small import QUICK
from tests.train.test_reading import CASES, SETTINGS, arrays, drawn, folder, opened_set, photos, txt

ENTRIES = (
    *("simple_cnn", "prism4_small", "prism4_small+places", "pool_attention_cnn"),
    *("simple_cnn+any_channels", "simple_cnn+estimated"),
)
SENSORS = CASES["names of sensors"][0]  # 0.tif has red, green and nir, 1.tif nir and red, 2.tif green


def network(tmp_path, files, entry="simple_cnn", label=None, **more):
    """Return the checkpoint of an untrained network for a data folder of these files, as a run keeps it.

    label: the combination of channels that it is for, of a model with a network for each.
    """
    opened = opened_set(folder(tmp_path / "data", files))
    names, settings = opened.images.channels.names, replace(SETTINGS, image_size=32, data=str(tmp_path / "data"))
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


def test_notes_on_how_files_are_read_are_warnings(tmp_path):
    model = loaded(tmp_path, arrays() | txt("red", "green", "nir"))
    part = folder(tmp_path / "part", {"0.npy": npy(drawn(2, 0))} | txt("nir", "red"))
    lacks = (
        f"part/0.npy lacks green: {model.name} is shown zeros in place of absent channels, model "
        f"{model.name}+any_channels the nearest ones"
    )
    for asked in (model.predict, model.preprocess, lambda file: model.predict([file])):
        with pytest.warns(UserWarning, match=re.escape(lacks)):
            asked(part / "0.npy")
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(tmp_path / "data")
        model.predict_files([part / "0.npy"], say=said.append)
    assert len(said) == 1
    assert said[0].endswith(lacks)


def test_the_state_of_a_training_is_refused_by_all_that_take_a_checkpoint(tmp_path, capsys):
    """Its weights are not those that were tested: of averaged weights they are the raw ones."""
    path = network(tmp_path, arrays(), optimizer={"state": {}})
    told = f"{path} is the state of a training, for --resume: give the best.pt beside it"
    with pytest.raises(UserError, match=re.escape(told)):
        polychrome.load(path)
    for command in (["predict", str(path), "x.npy"], ["export", str(path), "--format", "safetensors"]):
        assert main(command) == 2
        assert capsys.readouterr().err == f"error: {told}\n"


@pytest.mark.parametrize("device", ["mps", "gpu", "CPU", "cuda:", "cuda:x", "cpu:0", "", torch.device("meta")])
def test_a_device_that_is_none_is_refused_before_a_checkpoint_is_read(tmp_path, device):
    (tmp_path / "best.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"^no device is called '{device}': wanted auto, cpu, cuda or"):
        polychrome.load(tmp_path / "best.pt", device=device)


def test_one_of_several_gpus_is_taken_where_it_is_there(monkeypatch):
    with pytest.raises(UserError, match="--device cuda: torch sees no CUDA device here; use --device cpu or auto"):
        hardware.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [str(hardware.device(name)) for name in ("cuda", "cuda:1", "auto", "cpu", torch.device("cuda:0"))]
    assert found == ["cuda", "cuda:1", "cuda", "cpu", "cuda:0"]
    with pytest.raises(UserError, match="there is no device cuda:2: torch sees 2 CUDA devices here, from cuda:0"):
        hardware.device("cuda:2")


def test_nothing_is_no_row_and_an_image_without_pixels_is_refused(tmp_path):
    model = loaded(tmp_path, photos())
    assert model.preprocess([]).shape == (0, 3, 32, 32)
    assert model(model.preprocess([])).shape == (0, 2)
    empty = np.zeros((0, 10, 3), np.uint8)
    for image in (empty, empty.transpose(1, 0, 2), empty[..., 0], torch.zeros(3, 4, 0, dtype=torch.uint8)):
        for given in (image, [image]):
            for asked in (model.predict, model.preprocess):
                with pytest.raises(UserError, match=r"^(ndarray|Tensor) has no pixel$"):
                    asked(given)


def test_preprocess_takes_and_refuses_what_predict_does(tmp_path):
    model = loaded(tmp_path, photos())
    image, pattern = tmp_path / "data/0.png", str(tmp_path / "data/o*.png")
    for given in ([pattern, image], [[image, image], image], [np.zeros((2, 9, 9, 3), np.uint8)]):
        count = len(model.predict(given))
        assert count == len(model.preprocess(given))
    for wrong in (7, [7], [None], b"x", [torch.zeros(9, 9, dtype=torch.uint8)], [str(tmp_path / "*.gif")]):
        for asked in (model.predict, model.preprocess):
            with pytest.raises(UserError):
                asked(wrong)


@pytest.mark.parametrize("channels", ["", "+", ("R", "G"), 7])
def test_channels_that_are_no_combination_are_refused(tmp_path, channels):
    path = network(tmp_path, photos())
    model, image = polychrome.load(path), np.zeros((9, 9, 3), np.uint8)
    x = model.preprocess(image)
    told = "channels must name at least one of R, G, B|: wanted a name, such as 'RGB'"
    for asked in (
        lambda: model.predict(image, channels),
        lambda: model.predict(tmp_path / "data", channels),
        lambda: model.preprocess(image, channels),
        lambda: model(x, channels),
        lambda: polychrome.load(path, channels=channels),
    ):
        with pytest.raises(UserError, match=told):
            asked()
    if channels == "":
        assert main(["predict", str(path), str(tmp_path / "data"), "--channels", ""]) == 2


def test_the_checkpoint_of_one_combination_is_for_it_where_no_channels_are_named(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    model = loaded(tmp_path, arrays() | txt("red", "green", "nir"), "pool_attention_cnn+alone", "nir+red")
    file, array = tmp_path / "data/0.npy", drawn(3, 0).astype(np.float32)
    wanted = model.predict(file, "nir+red").probabilities
    assert model.combination == "nir+red"
    for given in (file, array, array[..., [2, 0]]):
        assert model.predict(given).probabilities == pytest.approx(wanted, abs=1e-6)
    assert shares(model, model.preprocess(file)) == [pytest.approx(wanted, abs=1e-6)]
    with pytest.raises(UserError, match=r"is the network for nir\+red, not for green"):
        model.predict(file, "green")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "best.pt", "--format", "safetensors"]) == 0
    assert export.load("pool_attention_cnn+alone-nir+red.safetensors").description.channels.names == ("nir", "red")


def test_classes_of_equal_names_differ_whatever_other_classes_are_called(tmp_path):
    path = network(tmp_path, photos())
    content = checkpoint.load(path)
    for names, wanted in (
        (["a", "a"], ("a (0)", "a (1)")),
        (["a", "a", "a (0)"], ("a (0) (0)", "a (1)", "a (0)")),
        (["a (1)", "a", "a"], ("a (1)", "a (1) (1)", "a (2)")),
        (["a", "a (0)"], ("a", "a (0)")),
    ):
        content["run"]["results"]["data"]["class_names"] = names
        checkpoint.save(path, content)
        assert polychrome.load(path).classes == wanted


def test_many_files_are_read_without_a_process_that_would_run_a_script_again(tmp_path, monkeypatch):
    path = network(tmp_path, photos())
    many = tmp_path / "many"
    many.mkdir()
    for number in range(FEW + 2):
        Image.fromarray(drawn(3, number, np.uint8)).save(many / f"{number:03}.png")

    def refused(process):
        raise AssertionError("a process is started")

    monkeypatch.setattr(BaseProcess, "start", refused)
    model = polychrome.load(path, device="cpu")
    found, x = model.predict(many), model.preprocess(many)
    assert [each.reason for each in found] == [None] * len(x) == [None] * (FEW + 2)
    for got, each in zip(shares(model, x), found, strict=True):
        assert got == pytest.approx(each.probabilities, abs=1e-6)
    with pytest.raises(AssertionError, match="a process is started"):
        polychrome.load(path, device="cpu", workers=2).predict(many)


def test_the_command_starts_a_process_for_each_core_and_runs_on_the_device_of_its_name(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(predict, "load", lambda run, *_, **how: asked.append(how) or polychrome.load(run, **how))
    command = ["predict", str(network(tmp_path, photos())), str(tmp_path / "data/0.png")]
    assert main(command) == 0
    assert main([*command, "--device", "cpu"]) == 0
    assert asked == [{"device": each, "workers": cpus()} for each in ("auto", "cpu")]
    capsys.readouterr()
    assert main([*command, "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: torch sees no CUDA device here")


@pytest.mark.parametrize("classes", [("path", "probability", "x"), ("class", "class (class)", "reason"), ("a", "=1")])
def test_every_column_of_a_csv_has_a_name_of_its_own(classes):
    each = Prediction(classes[1], 0.6, dict(zip(classes, (0.25, 0.6, 0.15), strict=False)), "x.png")
    heads, row = csv.reader(io.StringIO(predict.as_csv([each], classes)))
    assert len(set(heads)) == len(heads) == len(row) == 4 + len(classes)
    assert heads[:4] == ["path", "class", "probability", "reason"]
    assert row[4:6] == ["0.250000", "0.600000"]


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_classes_that_are_no_text_are_written_as_their_escapes(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = network(tmp_path, photos())
    content = checkpoint.load(path)
    content["run"]["results"]["data"]["class_names"] = ["a\udcff", "b\udcff"]
    checkpoint.save(path, content)
    target = tmp_path / f"found.{ending}"
    assert main(["predict", str(path), str(tmp_path / "data"), "--output", str(target)]) == 0
    assert target.read_bytes().count(rb"a\udcff") >= 1


def test_a_terminal_without_the_letters_of_a_class_gets_their_escapes(tmp_path, monkeypatch):
    path = network(tmp_path, photos())
    content = checkpoint.load(path)
    content["run"]["results"]["data"]["class_names"] = ["日本", "é"]
    checkpoint.save(path, content)
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["predict", str(path), str(tmp_path / "data/0.png")]) == 0
    stream.flush()
    head = stream.buffer.getvalue().decode("latin-1").splitlines()[0]
    assert head == r"path,class,probability,reason,\u65e5\u672c,é"


def test_long_photos_kept_as_squares_are_tested_as_they_are_predicted(tmp_path, capsys):
    """As where a GPU keeps them: the test sees the detail that files have, and so does the network in training."""
    data, run = tmp_path / "data", tmp_path / "task1/x"
    (data / "images").mkdir(parents=True)
    for split, count in (("train", 24), ("val", 6), ("test", 12)):
        for number in range(count):
            image = np.tile(draw(number % 3, 1000 * len(split) + number), (3, 5, 1))[number % 5 :, : 230 + number]
            Image.fromarray(image).save(data / f"images/{split}{number}.png")
        (data / f"{split}.txt").write_text(
            "".join(f"images/{split}{number}.png {number % 3}\n" for number in range(count))
        )
    start = ["task1", "--data", str(data), "--out", str(tmp_path), "--name", "x", "--models", "simple_cnn", *QUICK]
    assert main([*start, "--image-size", "56", "--batch-size", "12", "--epochs", "2", "--cache", "device"]) == 0
    assert "each squeezed to 109 x 109 pixels\n" in capsys.readouterr().out
    assert Settings.of_run(run / "config.toml").cache_size == 109
    with (run / "predictions-simple_cnn.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = polychrome.load(run, device="cpu").predict([data / row["path"] for row in rows])
    for row, prediction in zip(rows, found, strict=True):
        assert prediction.probabilities[row["predicted"]] == pytest.approx(float(row["probability"]), abs=0.02)
    assert main(["evaluate", str(run)]) == 0
    assert re.search(r"(\d+) of \1 figures are those of", capsys.readouterr().out)
