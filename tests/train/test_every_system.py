"""Each system of the reports, by name: made, trained for an epoch on a few images, tested on every combination."""

import json
import shutil
import tomllib
from importlib import resources

import pytest

from polychrome.train import systems
from polychrome.train.run import main
from polychrome.train.settings.config import RECIPES
from polychrome.train.settings.variants import TASKS
from tests.conftest import write_list_folder
from tests.train.small import QUICK


def text_of(recipe):
    return (resources.files("polychrome.train.recipes") / f"{recipe}.toml").read_text()


NAMES = [(task, name) for task in TASKS for name in systems.names(task)]
# A network of each way to take some of the channels, and one of each task; tests/models has the gradients of all.
USUAL = {("task1", "dynamic_cnn_v2"), ("task1", "naive_cnn"), ("task2", "se_2layer_cnn"), ("cifar100", "base_net")}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A data folder of three classes, 12 / 6 / 6 images."""
    return write_list_folder(tmp_path_factory.mktemp("few") / "data", per_class=(4, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "task"),
    [(recipe, task) for recipe in RECIPES for task in tomllib.loads(text_of(recipe)) if task != "transfer"],
)
def test_every_recipe_runs(few, tmp_path, recipe, task):
    arguments = ["--data", str(few), "--out", str(tmp_path), "--name", "x", "--epochs", "1", "--image-size", "64"]
    arguments += ["--warmup", "0", "--holdout", "0"]  # there is no room for either
    assert main([task, "--recipe", recipe, *arguments, "--batch-size", "12", "--workers", "1"]) == 0
    found = json.loads((tmp_path / task / "x/results.json").read_text())["models"]
    reported = {s.model for s in systems.SYSTEMS if (s.report, s.task) == (recipe[-1].upper(), task)}
    assert reported <= found.keys()
    shutil.rmtree(tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize(("task", "name"), NAMES)
def test_it_trains_on_the_gpu(few, tmp_path, task, name):
    check_one_epoch(few, tmp_path, task, name, "--device", "cuda", "--no-compile")


@pytest.mark.parametrize(
    ("task", "name"), [pytest.param(*pair, marks=() if pair in USUAL else pytest.mark.slow) for pair in NAMES]
)
def test_it_trains_and_is_tested_on_every_combination(few, tmp_path, task, name):
    check_one_epoch(few, tmp_path, task, name, "--device", "cpu")


def check_one_epoch(few, tmp_path, task, name, *options):
    entry = f"{name}+scratch" if task == "transfer" else name
    arguments = [
        "--data",
        str(few),
        "--out",
        str(tmp_path),
        "--name",
        "x",
        "--models",
        entry,
        "--epochs",
        "1",
        *options,
    ]
    assert main([task, *arguments, "--image-size", "64", "--batch-size", "12", *QUICK]) == 0
    found = json.loads((tmp_path / task / "x/results.json").read_text())["models"][entry]
    assert list(found["test"]) == ["RGB", "RG", "GB", "RB", "R", "G", "B"]
    assert all(0 <= row["accuracy"] <= 1 and row["loss"] > 0 for row in found["test"].values())
    assert found["epochs"] == 1
    assert found["reported"] == {}  # the reports' figures are of other images
    shutil.rmtree(tmp_path)  # the checkpoints of the largest take 2 GB
