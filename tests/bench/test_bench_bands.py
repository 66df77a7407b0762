"""The study of 48 bands: its table and its picture follow from the tables of the divisions."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from bench.studies import bands
from polychrome.engine.report import comparison
from polychrome.engine.run_folder import RunFolder
from polychrome.train.settings.config import read_toml

FACTS = {"commit": "f" * 40, "gpu": None, "cores": 1, "cpu": "C", "python": "3.11"}
FACTS |= {"versions": {"torch": "2.14.1", "torchvision": "0.29.1"}}


def keep(results, accuracies):
    """Write the tables of a division each, from accuracies by system and number of bands: first the division's."""
    for split, by_system in enumerate(accuracies):
        folder = results / f"houston48/bands/split{split}"
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text(json.dumps(FACTS))
        with open(folder / "table.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, comparison.COLUMNS)
            writer.writeheader()
            for model, found in by_system.items():
                common = {"model": model, "protocol": "mask", "flip_averaging": "no", "params": 428491}
                common |= {"train_seconds": 90.0}
                for label, accuracy in found.items():
                    writer.writerow(common | {"split": "test", "combination": label, "accuracy": accuracy})
                    writer.writerow(common | {"split": "val", "combination": label, "accuracy": accuracy - 0.1})


def course(full):
    """Return accuracies by combination: two choices of each number of bands, a tenth apart, each band, each sensor."""
    found = {"all": full} | {
        f"{count} of 48 #{number}": full - 0.1 * number for count in range(2, 48) for number in (1, 2)
    }
    alone = {str(band): full / 2 for band in range(48)}
    return found | alone | dict(zip(bands.SENSORS, (full - 0.4, full - 0.2, full), strict=True))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(bands, "SPLITS", 3)
    keep(tmp_path, [{"prism4_small": course(full), "pool": course(full - 0.3)} for full in (0.7, 0.8, 0.9)])
    return tmp_path


def test_the_table_has_means_over_choices_then_over_divisions(results):
    whole = bands.table(results)
    lines = [line.strip("| ").split(" | ") for line in whole.partition(" less the ")[0].splitlines() if "|" in line]
    first = dict(zip(lines[0], lines[2], strict=True))
    assert first["48 bands"] == "80.0 ± 10.0"
    assert first["8 bands"] == "65.0 ± 10.0"
    assert first["1 band"] == "40.0 ± 5.0"
    assert [first[f"bands {name}"] for name in ("0-19", "14-33", "28-47")] == [
        "40.0 ± 10.0",
        "60.0 ± 10.0",
        "80.0 ± 10.0",
    ]
    assert first["validation"] == f"{(70 + 5 * 55 + 30 + 30 + 50 + 70) / 10:.1f}"
    assert (first["parameters"], first["minutes"], first["protocol"]) == ("428,491", "1.5", "mask")
    assert "commit ffffffffffff" in bands.table(results)
    assert [line[0] for line in lines[2:]] == ["`prism4_small`", "`pool`"]
    # Ahead by 30 points in each division, but for single bands.
    assert "| `pool` | +30.0 ± 0.0 | +30.0 ± 0.0 |" in whole
    # Student's t of one degree of freedom; the share of test to training patches is 5/12.
    assert bands._lead([0.5, 0.6], [0.4, 0.4]) == f"+15.0 ± {12.7062 * 50**0.5 * (1 / 2 + 5 / 12) ** 0.5:.1f}"


def test_systems_that_lack_a_division_are_told_and_not_shown(results, monkeypatch):
    whole = bands.table(results)
    keep(results / "later", [{"late": course(0.9)}])
    (results / "later/houston48/bands/split0").rename(results / "houston48/bands/split0-2")
    said = " ".join(bands.table(results).split())
    assert said == " ".join(whole.split()) + " `late` is not shown: 1 of 3 divisions."
    monkeypatch.setattr(bands, "SPLITS", 5)
    assert bands.table(results) == (
        "Not measured yet. `late` is not shown: 1 of 5 divisions. `pool` is not shown: 3 of 5 divisions. "
        "`prism4_small` is not shown: 3 of 5 divisions."
    )


def test_networks_that_a_division_lacks_are_trained_beside_those_that_it_has(results, tmp_path, monkeypatch):
    asked, config = [], tmp_path / "bands.toml"
    config.write_text('models = ["prism4_small", "later", "pool", "last"]')
    monkeypatch.setattr(bands, "CONFIG", config)
    monkeypatch.setattr(bands.patches, "cut", lambda *_: None)

    def train(name, task, out, core, flags):
        asked.append((name, flags["models"]))
        keep(out / name, [dict.fromkeys(flags["models"].split(","), course(0.5))])
        return RunFolder(out / name / "houston48/bands/split0")

    monkeypatch.setattr(bands.runs, "train", train)
    for split in range(3):
        bands.train(None, split, tmp_path, tmp_path / "out", results)
        bands.train(None, split, tmp_path, tmp_path / "out", results)
    assert asked == [(f"bands-split{split}-2", "later,last") for split in range(3)]
    found, about = bands.read(results)
    assert [*found] == ["prism4_small", "pool", "later", "last"]
    assert [len(about[name]) for name in found] == [3] * 4


def test_the_picture_shows_a_line_for_each_system(results):
    bands.draw(results)
    with Image.open(results / "houston48/bands.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    for number in range(2):
        rgb = tuple(int(bands.COLOURS[number][place : place + 2], 16) for place in (1, 3, 5))
        assert rgb in colours


def test_without_results_nothing_is_claimed(tmp_path):
    assert bands.table(tmp_path) == "Not measured yet."


def test_the_settings_are_a_run_s():
    settings = read_toml(bands.CONFIG)
    assert settings["models"][0] == "prism4_small"
    assert settings["keep"] == "last"


@pytest.mark.slow
def test_a_scene_is_divided_trained_on_and_kept(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    labels = np.kron(generator.integers(1, 3, (12, 12)), np.ones((8, 8), int)).astype(np.uint8)
    cube = (labels[..., None] * 100 + generator.integers(0, 50, (96, 96, 48))).astype(np.uint16)
    np.savez(tmp_path / "scene.npz", cube=cube, labels=labels)
    config = tmp_path / "bands.toml"
    lines = [line for line in bands.CONFIG.read_text().splitlines() if not line.startswith(("    ", "models", "]"))]
    config.write_text("\n".join(['models = ["prism4_small"]', *lines]).replace("epochs = 60", "epochs = 3"))
    monkeypatch.setattr(bands, "CONFIG", config)
    monkeypatch.setattr(bands, "SPLITS", 2)
    assert bands.main([str(tmp_path / "scene.npz"), str(tmp_path / "out")], tmp_path) == 0
    found, _ = bands.read(tmp_path)
    assert set(found) == {"prism4_small"}
    assert set(found["prism4_small"]) == {*range(1, 49), *bands.SENSORS.values()}
    assert all(len(each) == 2 for each in found["prism4_small"].values())
    assert (tmp_path / "houston48/bands.png").exists()
