"""Whole runs on images from sensors that differ in their channels."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from polychrome.train.commands import export
from polychrome.train.finished import Run
from polychrome.train.run import main
from tests.conftest import draw
from tests.train.runner import results
from tests.train.small import QUICK

SMALL = ["--image-size", "32", "--batch-size", "12", "--epochs", "1", *QUICK]
SENSORS = {"one": ("red", "green", "blue"), "two": ("blue", "nir"), "six": ("blue", "nir", "swir")}
NAMES = ("red", "green", "blue", "nir", "swir")
SPLITS = {"train": 18, "val": 9, "test": 9}


def values(label, seed, names):
    image = draw(label, seed)[:40, :40, :1].astype(np.float64)
    return np.concatenate([image * (3 + NAMES.index(name)) + 100 * NAMES.index(name) for name in names], 2)


def write(root, sensors=SENSORS):
    """Write stacks in a folder for each sensor, lists, and channels.csv."""
    for number, (split, count) in enumerate(SPLITS.items()):
        lines = []
        for i in range(count):
            sensor = list(sensors)[i // 3 % len(sensors)]
            path = f"{sensor}/{split}_{i}.npy"
            (root / sensor).mkdir(parents=True, exist_ok=True)
            np.save(root / path, values(i % 3, 1000 * number + i, sensors[sensor]).astype(np.uint16))
            lines.append(f"{path} {i % 3}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    (root / "channels.csv").write_text("".join(f"{name},{'+'.join(own)}\n" for name, own in sensors.items()))
    return root


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run on images from three sensors."""
    data = write(tmp_path_factory.mktemp("three") / "data")
    start = ["--data", str(data), "--out", str(data.parent), "--name", "x", *SMALL]
    models = "pool_attention_cnn,baseline_cnn"
    assert main(["task1", *start, "--models", models, "--channels", "all,shuffled", "--plots"]) == 0
    return data.parent / "task1/x"


def test_a_combination_is_tested_on_the_images_that_have_it_and_all_on_every_image(three):
    found = results(three)
    assert found["data"]["channels"] == list(NAMES)
    assert [(row["name"], row["train"], row["val"], row["test"]) for row in found["data"]["sensors"]] == [
        ("red+green+blue", 6, 3, 3),
        ("blue+nir+swir", 6, 3, 3),
        ("blue+nir", 6, 3, 3),
    ]
    assert found["combinations"]["all"] == found["combinations"]["shuffled"] == []
    for entry in found["models"].values():
        images = {label: row["images"] for label, row in entry["test"].items()}
        assert images == {
            **{"all": 9, "red+green+blue": 3, "blue+nir+swir": 3, "blue+nir": 6},
            **{"red+green": 3, "red+blue": 3, "green+blue": 3, "blue+swir": 3, "nir+swir": 3},
            **{"red": 3, "green": 3, "blue": 9, "nir": 6, "swir": 3, "shuffled": 9},
        }
    mean = np.mean([np.load(file)[..., 0].mean() for file in three.parents[1].glob("data/one/train_*")])
    assert found["data"]["channel_mean"][0] == pytest.approx(mean, rel=1e-6)


def test_the_report_shows_which_images_have_which_channels(three):
    page = (three / "report.html").read_text()
    for text in ("Channels that images have", "A combination is tested on those test images that have all of it"):
        assert text in page
    markdown = (three / "report.md").read_text()
    assert re.search(r"\| blue\+nir\+swir \| +3 \| +6 \| +3 \| +3 \|", markdown)
    assert re.search(r"\| channels +\| +pool\\_attention\\_cnn +\| +baseline\\_cnn +\| +images +\|", markdown)
    assert re.search(r"\| blue \|.*\| +9 \|", markdown)
    assert (three / "plots/predictions-pool_attention_cnn.png").stat().st_size > 10_000


def test_an_evaluation_of_a_run_has_its_figures_and_counts(three, capsys):
    assert main(["evaluate", str(three)]) == 0
    assert re.search(r"(\d+) of \1 figures are those of", capsys.readouterr().out.replace("\n", " "))
    assert main(["evaluate", str(three), "--channels", "sensors,nir+blue", "--split", "test"]) == 0
    again = json.loads((three / "evaluation.json").read_text())["models"]["pool_attention_cnn"]["test"]
    assert list(again) == ["red+green+blue", "blue+nir+swir", "blue+nir", "nir+blue"]
    assert again["nir+blue"]["images"] == 6
    capsys.readouterr()
    assert main(["evaluate", str(three), "--channels", "red+swir"]) == 2
    assert "channels 'red+swir': no image of val or test has all of them" in capsys.readouterr().err


def test_other_images_are_tested_on_the_channels_that_they_have(three, tmp_path, capsys):
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        for seed in range(2):
            np.save(tmp_path / f"{label}/{seed}.npy", values(label, seed, ("swir", "red")).astype(np.uint16))
    (tmp_path / "channels.csv").write_text(".,swir+red\n")
    assert main(["evaluate", str(three), "--data", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "every image lacks channels: red+swir: 6 test images" in printed
    assert "11 combinations of channels not tested, as no image of test has them, such as red+green+blue" in printed
    again = json.loads((three / "evaluation.json").read_text())["models"]["baseline_cnn"]["test"]
    assert {label: row["images"] for label, row in again.items()} == {"all": 6, "red+swir": 6, "red": 6, "swir": 6}
    (tmp_path / "channels.csv").write_text(".,swir+uv\n")
    assert main(["evaluate", str(three), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "0/0.npy has channels swir, uv, wanted some of red, green, blue, nir, swir" in error


def test_a_single_image_is_predicted_by_the_channels_that_it_has(three, tmp_path, capsys):
    described = three.parents[1] / "data/two/test_3.npy"
    image = str(shutil.copy(described, tmp_path))
    capsys.readouterr()
    assert main(["predict", str(three), str(described)]) == 0
    assert "lacks" not in capsys.readouterr().err
    assert main(["predict", str(three), image]) == 2
    wanted = "has 2 channels, wanted 5: red, green, blue, nir, swir; name them in channels.csv, or by --channels"
    assert wanted in capsys.readouterr().err
    for model in ("pool_attention_cnn", "baseline_cnn"):
        assert main(["predict", str(three), image, "--channels", "blue+nir", "--model", model]) == 0
        assert f"{model}, channels blue+nir" in capsys.readouterr().err


def test_an_export_is_checked_on_images_whose_absent_channels_hold_the_mean(three):
    trained = Run(three, "cpu")
    images, pixels = export.first_tested(trained, "baseline_cnn", None)
    assert len(images) == len(pixels) == 9
    for place, (image, whole) in enumerate(zip(images, pixels, strict=True)):
        sensor = list(SENSORS.values())[place // 3 % 3]
        for channel, (name, mean) in enumerate(zip(NAMES, trained.channels.mean, strict=True)):
            for found in (image[channel].numpy(), whole[..., channel]):
                assert (np.ptp(found) > 100) if name in sensor else (found == np.float32(mean)).all()


def test_a_run_does_not_go_on_with_other_channels(three, capsys):
    lines = three.parents[1] / "data/channels.csv"
    before = lines.read_text()
    try:
        lines.write_text(before.replace("swir", "lwir"))
        assert main(["task1", "--resume", str(three), "--epochs", "2"]) == 2
    finally:
        lines.write_text(before)
    error = capsys.readouterr().err
    assert "was trained on channels red, green, blue, nir, swir" in error
    assert "has red, green, blue, nir, lwir" in error


def test_a_network_for_each_sensor_is_trained_on_its_images_alone(tmp_path, capsys):
    data = write(tmp_path / "data")
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL, "--channels", "sensors"]
    assert main(["task1", *start, "--models", "naive_cnn,pool_attention_cnn+alone", "--cache", "none"]) == 0
    run = tmp_path / "task1/x"
    for entry in results(run)["models"].values():
        images = {label: row["images"] for label, row in entry["test"].items()}
        assert images == {"red+green+blue": 3, "blue+nir+swir": 3, "blue+nir": 6}
    folders = {path.parent.name for path in run.glob("checkpoints/pool_attention_cnn+alone/*/best.pt")}
    assert folders == {"red+green+blue", "blue+nir+swir", "blue+nir"}
    guesses = list(csv.DictReader((run / "predictions-pool_attention_cnn+alone.csv").open()))
    assert [row["predicted"] == row["probability"] == "" for row in guesses] == [False] * 3 + [True] * 6
    rows = list(csv.DictReader((run / "predictions/pool_attention_cnn+alone.csv").open()))
    rows = [row for row in rows if row["split"] == "test"]
    assert [row["red+green+blue"] == "" for row in rows] == [False] * 3 + [True] * 6
    assert sum(row["blue+nir"] != "" for row in rows) == 6
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert re.search(r"(\d+) of \1 figures are those of", capsys.readouterr().out.replace("\n", " "))


def test_what_such_data_cannot_have_is_refused(tmp_path, capsys):
    data = write(tmp_path / "data", {"odd": ("red", "swir")} | SENSORS)
    kept = [line for line in (data / "val.txt").read_text().splitlines(keepends=True) if "odd" not in line]
    (data / "val.txt").write_text("".join(kept))
    start = ["--data", str(data), "--out", str(tmp_path), *SMALL, "--channels", "sensors"]
    assert main(["task1", *start, "--models", "pool_attention_cnn+alone"]) == 2
    error = capsys.readouterr().err
    assert "a network for red+swir: 0 images of val have these channels, wanted 2 or more" in error


def test_images_with_a_file_for_each_channel_train_a_model(tmp_path):
    for label in range(3):
        folder = tmp_path / f"data/class{label}"
        folder.mkdir(parents=True)
        for seed in range(12):
            for channel in range(1, 4 if seed % 2 else 3):
                image = values(label, seed, NAMES[channel : channel + 1])[..., 0] / 5
                Image.fromarray(image.astype(np.uint8)).save(folder / f"site{seed}_w{channel}.png")
    start = ["--data", str(tmp_path / "data"), "--out", str(tmp_path), "--name", "x", *SMALL]
    assert main(["task1", *start, "--models", "dynamic_cnn_v2", "--channel-files", "_w([0-9])"]) == 0
    found = results(tmp_path / "task1/x")["data"]
    assert found["channels"] == ["1", "2", "3"]
    assert [row["channels"] for row in found["sensors"]] == [["1", "2", "3"], ["1", "2"]]
    assert sum(found[split] for split in ("train", "val", "test")) == 36
    assert (found["files"]["used"], found["files"]["present"]) == (90, 90)
    run, found = str(tmp_path / "task1/x"), tmp_path / "found.csv"
    assert main(["evaluate", run, "--split", "test"]) == 0
    assert main(["predict", run, str(tmp_path / "data"), "--output", str(found)]) == 0
    rows = {row["path"]: row["class"] for row in csv.DictReader(found.open())}
    assert len(rows) == 36
    with (tmp_path / "task1/x/predictions/dynamic_cnn_v2.csv").open() as file:
        before = {str(tmp_path / "data" / row["image"]): f"class{row['all']}" for row in csv.DictReader(file)}
    assert before.items() <= rows.items()


@pytest.mark.parametrize("joined", [True, False])
def test_absent_channels_are_estimated_where_sensors_share_channels_and_else_the_nearest(tmp_path, capsys, joined):
    sensors = SENSORS if joined else {"one": ("red", "green", "blue"), "two": ("nir", "swir")}
    data, entry = write(tmp_path / "data", sensors), "baseline_cnn+estimated"
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL]
    assert main(["task1", *start, "--models", entry]) == 0
    network = Run(tmp_path / "task1/x", "cpu").networks(entry, {"all": None})[0][1]
    assert network.axes.any() == joined
    said = "channels 0 and 3 are never together in an image, nor joined by others: how they vary together is not known;"
    printed = " ".join(capsys.readouterr().out.split())
    assert (f"{entry}: {said} absent channels are filled in with the nearest" in printed) != joined
