"""The networks of a finished run: which one is used for which channels, and which model by default."""

import json
from itertools import permutations

import pytest

from polychrome.engine.channels.names import RGB, SHUFFLED
from polychrome.engine.run_folder import RunFolder
from polychrome.train.finished import Run
from polychrome.train.run import main
from polychrome.train.settings.config import Settings
from tests.train import runner
from tests.train.small import QUICK

ORDERS = ["".join(letters) for size in (1, 2, 3) for letters in permutations("RGB", size)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a model with a network for every order of every set of channels but for BGR; no weights are there."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "a")
    folder.root.mkdir()
    trained = [order for order in ORDERS if order != "BGR"]
    scores = {"test": {label: {"accuracy": 0.5} for label in (*trained, SHUFFLED)}}
    statistics = {"channels": list("RGB"), "channel_mean": RGB.mean, "channel_std": RGB.std}
    models = {"naive_cnn": {"protocol": "one-per-combination", "epochs": 1, "val": {}, "scores": scores}}
    data = {"classes": 2, "class_names": ["a", "b"]} | statistics
    combinations = {label: list(label) for label in trained} | {SHUFFLED: []}
    folder.write_results({"task": "task1", "data": data, "models": models, "combinations": combinations})
    settings = Settings(models=("naive_cnn",), image_size=64, precision="fp32", workers=1, batch_size=1)
    folder.write(folder.config, settings.to_toml())
    return folder.root


def networks_for(run, monkeypatch, *orders):
    """Return the channels that the network for each of some combinations is shown, and its name."""
    trained = Run(run, "cpu")
    monkeypatch.setattr(trained, "_network", lambda name, path, in_channels: (path.parent.name, in_channels))
    found = trained.networks("naive_cnn", {order: tuple(map("RGB".index, order)) for order in orders})
    assert all(count == len(shown) for part, (_, count) in found for shown in part.values())
    return {
        label: ("".join("RGB"[place] for place in shown), name)
        for part, (name, _) in found
        for label, shown in part.items()
    }


def test_every_order_of_channels_has_its_own_network(run, monkeypatch):
    found = networks_for(run, monkeypatch, *ORDERS)
    assert found == {order: (order, order) for order in ORDERS if order != "BGR"} | {"BGR": ("RGB", "RGB")}


def test_channels_in_an_order_that_was_not_trained_are_shown_in_that_of_the_first_network_for_them(run, monkeypatch):
    assert networks_for(run, monkeypatch, "BGR") == {"BGR": ("RGB", "RGB")}


def test_evaluate_repeats_the_figures_of_two_orders_of_the_same_channels(stripes, tmp_path, capsys):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", "--models", "naive_cnn"]
    small = ["--image-size", "32", "--batch-size", "24", "--epochs", "1", *QUICK]
    assert main([*start, *small, "--channels", "RG,GR", "--backend", "torch"]) == 0
    run = tmp_path / "task1/a"
    figures = runner.results(run)["models"]["naive_cnn"]["test"]
    assert figures["RG"]["loss"] != figures["GR"]["loss"]
    for asked, labels in (("RG,GR", ("RG", "GR")), ("GR,RG", ("GR", "RG")), ("GR", ("GR",)), ("RG", ("RG",))):
        assert main(["evaluate", str(run), "--channels", asked]) == 0
        again = json.loads((run / "evaluation.json").read_text())["models"]["naive_cnn"]["test"]
        assert again == {label: figures[label] for label in labels}
