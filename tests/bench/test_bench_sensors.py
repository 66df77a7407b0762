"""The study of one model for three sensors: its data, its table and its picture."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from bench.studies import sensors
from polychrome.engine.data.sets import listing
from polychrome.engine.data.sets.sensors import descriptions
from polychrome.engine.report import comparison


@pytest.fixture
def patches(tmp_path):
    """A data folder of patches of 48 bands, each band with its number and the patch's: 12, 6 and 6 of two classes."""
    folder = tmp_path / "patches"
    (folder / "patches").mkdir(parents=True)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for number in range(count):
            values = np.broadcast_to(np.arange(48, dtype=np.uint16) + 100 * number, (9, 9, 48))
            np.save(folder / f"patches/{split}{number}.npy", values)
        (folder / f"{split}.txt").write_text("".join(f"patches/{split}{i}.npy {i % 2}\n" for i in range(count)))
    (folder / "classes.txt").write_text("grass\nroad\n")
    return folder


def test_each_patch_has_the_bands_of_one_sensor_and_each_sensor_its_share_of_each_class(patches, tmp_path, capsys):
    out = tmp_path / "three"
    assert sensors.main(["make", str(patches), str(out)]) == 0
    assert "bands 14-33: 4 train, 2 val, 2 test patches" in capsys.readouterr().out
    images = listing.read(out)
    assert images.class_names == ("grass", "road")
    paths = images.splits["train"].paths
    described = descriptions.read(out, paths)
    for path, label in zip(paths, images.splits["train"].labels, strict=True):
        (bands,) = (own for name, own in sensors.SENSORS.items() if path.startswith(name.replace(" ", "_")))
        number = int(path.rpartition("train")[2].removesuffix(".npy"))
        assert np.load(out / path)[0, 0].tolist() == [band + 100 * number for band in bands]
        assert described[path].names == tuple(f"b{band:02d}" for band in bands)
        assert label == number % 2
    counts = {name: [path.startswith(name) for path in paths].count(True) for name in ("bands_0-19", "bands_28-47")}
    assert counts == {"bands_0-19": 4, "bands_28-47": 4}
    with pytest.raises(SystemExit):
        sensors.main(["make", str(patches), str(out)])


def run_of(tmp_path, accuracies):
    """Write the table and the environment of a run with an accuracy for each system and sensor."""
    folder = tmp_path / "houston48/sensors"
    folder.mkdir(parents=True)
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, comparison.COLUMNS)
        writer.writeheader()
        for model, found in accuracies.items():
            for number, accuracy in enumerate(found, 1):
                row = {"model": model, "split": "test", "combination": f"sensor {number}", "flip_averaging": "no"}
                row |= {
                    "accuracy": accuracy,
                    "spread": 0.01,
                    "seeds": "0 1 2",
                    "epochs": 20,
                    "train_seconds": 90,
                    "params": 1000,
                }
                row["balanced_accuracy"] = accuracy - 0.1
                writer.writerow(dict.fromkeys(comparison.COLUMNS, "") | row)
    facts = {"gpu": None, "cores": 2, "cpu": "a CPU", "python": "3.11", "commit": "0123456789abcdef"}
    facts["versions"] = {"torch": "2", "torchvision": "1"}
    (folder / "environment.json").write_text(json.dumps(facts))


def test_the_table_has_each_sensors_accuracy_with_its_spread_and_the_mean(tmp_path):
    assert sensors.table(tmp_path) == "Not measured yet."
    run_of(tmp_path, {"baseline_cnn": (0.5, 0.6, 0.7), "baseline_cnn+alone": (0.4, 0.6, 0.5)})
    lines = sensors.table(tmp_path).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["model", "networks", "parameters", "epochs", *sensors.SENSORS, "mean", "balanced", "seeds"]
    figures = "50.0 ± 1.0", "60.0 ± 1.0", "70.0 ± 1.0", "60.0", "50.0"
    assert cells[2] == ["`baseline_cnn`", "one network for all", "1,000", "20", *figures, "0 1 2"]
    figures = "40.0 ± 1.0", "60.0 ± 1.0", "50.0 ± 1.0", "50.0", "40.0"
    assert cells[3] == ["`baseline_cnn`", "a network for each sensor", "3,000", "20", *figures, "0 1 2"]
    assert "(commit 0123456789ab); 2 cores of a CPU, python 3.11, torch 2, torchvision 1." in " ".join(lines)


def test_the_picture_shows_every_system(tmp_path):
    run_of(tmp_path, {f"{model}{kind}": (0.5, 0.6, 0.7) for model in ("a_cnn", "b_cnn") for kind in sensors.KINDS})
    sensors.draw(tmp_path)
    with Image.open(tmp_path / "houston48/sensors.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(10**6)) > 50
