"""Task transfer: from a run of ours to other classes, and from a file of weights."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from polychrome import models
from polychrome.engine import export
from polychrome.engine.channels.names import Channels
from polychrome.engine.data.sets import repeats
from polychrome.engine.errors import UserError
from polychrome.engine.run_folder import RunFolder
from polychrome.engine.training import checkpoint, transfer
from polychrome.engine.training.trainer import Trainer
from polychrome.train import networks, preparation
from polychrome.train.data import open_data, summary
from polychrome.train.run import main
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings
from tests.conftest import draw, write_list_folder
from tests.train import runner
from tests.train.small import QUICK

SMALL = ["--image-size", "32", "--batch-size", "12", *QUICK]


@pytest.fixture(scope="module")
def source(stripes, tmp_path_factory):
    """A run that trained attention_cnn to tell stripes apart."""
    out = tmp_path_factory.mktemp("source")
    start = ["task2", "--data", str(stripes), "--out", str(out), "--name", "s", "--models", "attention_cnn", *SMALL]
    assert main([*start, "--epochs", "12", "--augmentations", "none", "--lr", "0.003"]) == 0
    return out / "task2/s"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The same three classes and a fourth name without an image, with few images to learn them from."""
    root = write_list_folder(tmp_path_factory.mktemp("few") / "data", per_class=(6, 12, 12))
    (root / "classes.txt").write_text("level\nupright\nslanted\nnone\n")
    return root


def on(data, out):
    """Return the options for a folder that has no image of its fourth class."""
    return ["--data", str(data), "--num-classes", "4", "--out", str(out)]


def test_trained_weights_beat_fresh_ones_and_every_mode_is_printed(source, few, tmp_path, capsys):
    arguments = [*on(few, tmp_path), "--name", "t", *SMALL, "--epochs", "3"]
    options = ["--models", "attention_cnn", "--weights", str(source), "--augmentations", "none"]
    assert main(["transfer", *arguments, *options]) == 0
    found = json.loads((tmp_path / "transfer/t/results.json").read_text())["models"]
    assert list(found) == [f"attention_cnn+{mode}" for mode in ("frozen", "finetuned", "scratch")]
    tested = {name.partition("+")[2]: entry["test"]["RGB"] for name, entry in found.items()}
    for mode in ("frozen", "finetuned"):
        assert tested[mode]["loss"] < 0.5 * tested["scratch"]["loss"]
        assert tested[mode]["accuracy"] >= tested["scratch"]["accuracy"]
    printed = capsys.readouterr().out
    for wanted in (*found, "level", "upright", "slanted"):
        assert wanted in printed
    said = " ".join(printed.split())
    for mode in ("frozen", "finetuned"):
        assert len(re.findall(rf"attention_cnn\+{mode} starts from \d+ tensors of --weights", said)) == 1
    assert said.count("starts fresh, as its weight is [3, ") == 2
    assert "attention_cnn+scratch starts from" not in said
    start = checkpoint.load(source / "checkpoints/attention_cnn/best.pt")["model"]
    frozen = checkpoint.load(tmp_path / "transfer/t/checkpoints/attention_cnn+frozen/best.pt")["model"]
    head = transfer.head_of(models.create("attention_cnn"))[0] + "."
    assert all(torch.equal(frozen[key], start[key]) for key in start if not key.startswith(head))
    assert frozen[head + "weight"].shape[0] == 4


def test_weights_from_a_file_and_a_single_mode(source, few, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(checkpoint.load(source / "checkpoints/attention_cnn/best.pt")["model"], file)
    arguments = [*on(few, tmp_path), "--name", "t", *SMALL, "--epochs", "1"]
    assert main(["transfer", *arguments, "--models", "attention_cnn+frozen", "--weights", str(file)]) == 0
    assert list(json.loads((tmp_path / "transfer/t/results.json").read_text())["models"]) == ["attention_cnn+frozen"]


def test_a_run_without_the_model_is_refused(source, few, tmp_path, capsys):
    arguments = [*on(few, tmp_path), *SMALL, "--models", "simple_cnn"]
    assert main(["transfer", *arguments, "--weights", str(source)]) == 2
    assert "that run trained attention_cnn, no simple_cnn" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "transfer", ignore_errors=True)
    assert main(["transfer", *arguments, "--weights", str(few)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def kept(path, entry, channels, classes, label=""):
    """Write a checkpoint of a network that is not trained, in the form of a run's best.pt, and return its path."""
    names = label.split("+") if label and "alone" not in entry else channels
    settings = Settings(image_size=32)
    model = networks.create(entry, variants.of(settings, entry), len(classes), len(names))
    data = {"channels": list(channels), "class_names": list(classes)}
    results = {"data": data, "combinations": {label: label.split("+")}}
    run = {"config": settings.to_toml(), "results": results}
    checkpoint.save(path, {"name": f"{entry} {label}".strip(), "model": model.state_dict(), "run": run})
    return path


def started(file, entry, channels, classes=("cat", "dog")):
    """Return what is said of a network of `channels` that starts from the weights in a file, and the network."""
    own = variants.of(replace(Settings(), image_size=32, weights=str(file), transfer="finetuned"), entry)
    model, said = networks.create(entry, own, len(classes), len(channels)), []
    networks.load_trained(model, entry, own, channels, classes, said.append)
    return said[0], model


ONE, TWO, OTHERS = ("red", "green", "nir"), ("nir", "red", "green"), ("red", "green", "blue")


@pytest.mark.parametrize(
    ("entry", "before", "now", "wanted"),
    [
        *((entry, ONE, ONE, "") for entry in ("simple_cnn", "pool_attention_cnn", "prism4_small")),
        *(
            (entry, ONE, TWO, None)
            for entry in ("simple_cnn", "pool_attention_cnn", "prism4_small", "simple_cnn+alone")
        ),
        ("simple_cnn", ONE, OTHERS, None),
        ("simple_cnn", ONE, ONE[:2], None),
        ("prism4_small+places", ONE, OTHERS, None),
        ("pool_attention_cnn", ONE, OTHERS, "; its channels were red, green, nir, the data has red, green, blue"),
        ("pool_attention_cnn", ONE, ("red",), "; its channels were red, green, nir, the data has red"),
        *(
            ("simple_cnn", *names, "; channels without names are taken by their places: its were ")
            for names in ((ONE, ("0", "1", "2")), (("0", "1", "2"), ONE))
        ),
    ],
)
def test_weights_of_other_channels_or_another_order_are_told_or_refused(tmp_path, entry, before, now, wanted):
    file = kept(tmp_path / "best.pt", entry, before, ("cat", "dog"))
    if wanted is None:
        both = f"{', '.join(before)}, the data has {', '.join(now)}: wanted the same in the same order"
        with pytest.raises(UserError, match=re.escape(f"best.pt: its channels were {both}")):
            started(file, entry, now)
    else:
        said, _ = started(file, entry, now)
        assert re.search(rf"{entry} starts from \d+ tensors of --weights {re.escape(str(file) + wanted)}", said)
        assert said.endswith(wanted) or wanted.endswith(" ")


@pytest.mark.parametrize("entry", ["simple_cnn+any_channels", "simple_cnn+estimated"])
def test_a_network_for_any_channels_starts_from_the_weights_of_the_network_it_is_made_of(tmp_path, entry):
    file = kept(tmp_path / "best.pt", "simple_cnn", ONE, ("cat", "dog"))
    said, model = started(file, entry, ONE)
    assert said.startswith(f"{entry} starts from ")
    before = checkpoint.load(file)["model"]
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())
    for other in ("simple_cnn+any_channels", "simple_cnn+estimated"):
        own = kept(tmp_path / "own.pt", other, ONE, ("cat", "dog"))
        before = checkpoint.load(own)["model"]
        _, model = started(own, entry, ONE)
        assert all(torch.equal(value, before[f"network.{key}"]) for key, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (("R", "G", "B"), ""),
        (("nir", "R", "G"), "; its channels were R, G, B, the data has nir, R, G, which are taken by their places"),
        (("0", "1", "2"), "; channels without names are taken by their places: its were R, G, B, the data has 0, 1, 2"),
        (("B", "G", "R"), None),
    ],
)
def test_torchvisions_weights_are_for_red_green_and_blue(monkeypatch, now, wanted):
    own = variants.of(replace(Settings(), transfer="finetuned"), "resnet18")
    monkeypatch.setattr(transfer, "of_torchvision", lambda name: networks.create(name, own, 2, 3).state_dict())
    model, said = networks.create("resnet18", own, 2, 3), []
    if wanted is None:
        with pytest.raises(UserError, match="its channels were R, G, B, the data has B, G, R: wanted the same in the"):
            networks.load_trained(model, "resnet18", own, now, ("cat", "dog"), said.append)
    else:
        networks.load_trained(model, "resnet18", own, now, ("cat", "dog"), said.append)
        assert said == [f"resnet18 starts from 122 tensors of torchvision's weights of resnet18{wanted}"]


@pytest.mark.parametrize(("entry", "takes"), [("naive_cnn", ("nir", "red")), ("simple_cnn+alone", ONE)])
def test_the_channels_of_one_of_several_networks_are_those_that_it_is_shown(tmp_path, entry, takes):
    file = kept(tmp_path / "best.pt", entry, ONE, ("cat", "dog"), "nir+red")
    assert started(file, entry, takes)[0].endswith("best.pt")
    with pytest.raises(UserError, match=f"its channels were {', '.join(takes)}, the data has {', '.join(takes[::-1])}"):
        started(file, entry, takes[::-1])


def test_exported_weights_are_compared_by_their_description(tmp_path):
    pytest.importorskip("safetensors")
    file = tmp_path / "m.safetensors"
    model = networks.create("baseline_cnn", Settings(image_size=32), 2, 3).eval()
    channels = Channels(ONE, (0.5,) * 3, (0.2,) * 3)
    about = export.Description("baseline_cnn", 32, ("cat", "dog"), channels, "uint8", False, 1.0)
    export.save(model, about, file, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "black")
    assert "fresh" not in started(file, "baseline_cnn", ONE)[0]
    assert "as its class 0 is 'cat' for 'dog'" in started(file, "baseline_cnn", ONE, ("dog", "cat"))[0]
    with pytest.raises(UserError, match=r"m\.safetensors: its channels were red, green, nir, the data has nir, red, "):
        started(file, "baseline_cnn", TWO)
    file.with_name("m.safetensors.json").write_text('{"channels": 3, "classes": 2}')  # of another program
    assert "fresh" not in started(file, "baseline_cnn", TWO, ("dog", "cat"))[0]


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (("cat", "dog"), ""),
        (("dog", "cat"), "class 0 is 'cat' for 'dog'"),
        (("cat", "cow"), "class 1 is 'dog' for 'cow'"),
        (("cat", "dog", "cow"), "weight is [2, "),
    ],
)
def test_a_head_for_other_classes_or_another_order_starts_fresh_and_that_is_said(tmp_path, now, wanted):
    file = kept(tmp_path / "best.pt", "simple_cnn", ONE, ("cat", "dog"))
    said, model = started(file, "simple_cnn", ONE, now)
    weights, head = checkpoint.load(file)["model"], transfer.head_of(model)[0]
    own = {key: value for key, value in model.state_dict().items() if key.startswith(f"{head}.") == bool(wanted)}
    same = [weights[key].shape == value.shape and torch.equal(weights[key], value) for key, value in own.items()]
    assert not any(same) if wanted else all(same)
    assert (f"; the last layer, {head}, starts fresh, as its {wanted}" in said) == bool(wanted)


def run_on(opened, root):
    """Write the folder of a run of simple_cnn on opened data, which is not trained, and return it."""
    folder, images = RunFolder(root), opened.images
    folder.root.mkdir()
    path = folder.checkpoints("simple_cnn") / "best.pt"
    kept(path, "simple_cnn", images.channels.names, images.class_names)
    models = {"simple_cnn": {"protocol": "zero-pad", "epochs": 1, "val": {"loss": 1.0, "accuracy": 1.0}}}
    models["simple_cnn"]["scores"] = {"test": {"RGB": {"accuracy": 1.0}}}
    folder.write_results({"task": "task1", "data": summary(opened), "models": models})
    folder.write(folder.config, Settings(image_size=32).to_toml())
    folder.write_trained_on(repeats.fingerprints(images, "train"))
    return folder


def prepared(data, weights, resume=None, models=("simple_cnn+finetuned",), **settings):
    own = Settings(data=str(data), models=models, weights=str(weights), image_size=32, workers=1, **settings)
    return preparation.prepare("transfer", variants.resolve(own, "transfer"), resume)


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A folder of three classes of 20 images each, which a seed divides, and a run on them by seed 0."""
    root = tmp_path_factory.mktemp("divided")
    for number in range(60):
        (root / f"data/{number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(number % 3, number)).save(root / f"data/{number % 3}/{number}.png")
    settings = Settings(data=str(root / "data"), image_size=32, workers=1)
    return root / "data", run_on(open_data(variants.resolve(settings, "task1"), "task1"), root / "run")


@pytest.mark.parametrize("given", ["run", "run/checkpoints/simple_cnn/best.pt"])
def test_images_to_test_on_that_the_weights_were_trained_on_are_counted_and_noted(divided, capsys, given):
    data, run = divided
    files = {name: set(split.paths) for name, split in prepared(data, run.root).images.splits.items()}
    assert "trained on" not in capsys.readouterr().out
    found = prepared(data, run.root.parent / given, seed=1, holdout=6)
    counts = [
        f"{len(files['train'] & set(split.paths))} of {len(split.paths)} images of {name}"
        for name, split in found.images.splits.items()
        if name != "train"
    ]
    said = " ".join(capsys.readouterr().out.split())
    line = f"{' and '.join(counts)} are among those that --weights {run.root.parent / given} was trained on: accuracy "
    assert line in said
    assert [note for note in summary(found.data)["notes"] if note.startswith(line)]
    seeds = preparation.prepare("transfer", found.settings, data=found.data)  # another seed, with the data that is open
    assert summary(seeds.data)["notes"] == summary(found.data)["notes"]
    every = repeats.fingerprints(found.images, "train"), run.read_trained_on()
    assert set(found.trained_on) == {*every[0], *every[1]} > set(every[0])
    scratch = prepared(data, run.root, models=("simple_cnn+scratch",), seed=1)
    assert not any("trained on" in note for note in summary(scratch.data)["notes"])


@pytest.mark.parametrize("place", ["run of an earlier version", "best.pt"])
def test_without_what_a_run_was_trained_on_another_division_is_told(divided, tmp_path, capsys, place):
    data, run = divided
    moved, copy = Path(shutil.copytree(data, tmp_path / "moved")), tmp_path / place
    if place == "best.pt":  # alone, with its copy of what was known of the data
        content = checkpoint.load(run.checkpoints("simple_cnn") / "best.pt")
        content["run"]["results"] |= {"data": run.read_results()["data"]}
        checkpoint.save(copy, content)
    else:
        shutil.copytree(run.root, copy)
        RunFolder(copy).trained_on.unlink()
    for folder in (data, moved):
        prepared(folder, copy)
        assert "trained on" not in capsys.readouterr().out
        prepared(folder, copy, seed=1)
        said = " ".join(capsys.readouterr().out.split())
        assert (
            f"some images of val, test may be among those that --weights {copy} was trained on, which are not known"
            in said
        )


def test_a_run_keeps_what_its_weights_were_trained_on_and_its_note_where_these_are_gone(divided, tmp_path, capsys):
    data, run = divided
    weights = Path(shutil.copytree(run.root, tmp_path / "weights"))
    start = ["transfer", "--data", str(data), "--out", str(tmp_path), "--name", "t", "--seed", "1", "--epochs", "1"]
    assert main([*start, *SMALL, "--models", "simple_cnn+finetuned", "--weights", str(weights)]) == 0
    folder = RunFolder(tmp_path / "transfer/t")
    notes = folder.read_results()["data"]["notes"]
    assert [note for note in notes if f"--weights {weights} was trained on" in note]
    assert "was trained on: accuracy there says less" in (folder.root / "report.md").read_text()
    trained_on = folder.read_trained_on()
    assert {*trained_on} > {*run.read_trained_on()}
    shutil.rmtree(weights)
    assert main(["transfer", "--resume", str(folder.root), "--epochs", "2"]) == 0
    assert folder.read_results()["data"]["notes"] == notes
    assert list(folder.read_trained_on()) == list(trained_on)
    capsys.readouterr()
    assert main(["evaluate", str(folder.root)]) == 0
    assert f"are among those that {folder.root} was trained on" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize(
    "entry", ["attention_cnn+frozen", pytest.param("attention_cnn+finetuned", marks=pytest.mark.slow)]
)
def test_a_training_that_begins_again_begins_with_the_trained_weights(
    source, few, tmp_path, monkeypatch, capsys, entry
):
    """As where it was stopped in its first epoch and goes on with other batches, which fit no middle of an epoch."""
    start = ["transfer", *on(few, tmp_path), *SMALL, "--epochs", "2", "--models", entry, "--weights", str(source)]
    assert main([*start, "--name", "whole", "--batch-size", "6"]) == 0
    with monkeypatch.context() as patch:
        update = Trainer._update
        patch.setattr(Trainer, "_update", lambda self: update(self) or os.kill(os.getpid(), signal.SIGTERM))
        assert main([*start, "--name", "parts"]) != 0
    run = tmp_path / "transfer/parts"
    assert [path.name for path in (run / "checkpoints" / entry).iterdir()] == ["step.pt"]
    for resumed, said in (["--batch-size", "6"], 1), ([], 0):
        capsys.readouterr()
        copy = shutil.copytree(run, tmp_path / f"transfer/{said}")
        assert main(["transfer", "--resume", str(copy), *resumed]) == 0
        assert " ".join(capsys.readouterr().out.split()).count(f"{entry} starts from") == said
    assert runner.history(tmp_path / "transfer/1") == runner.history(tmp_path / "transfer/whole")
    # Weights that are gone are missed before anything is trained, and only where they are needed.
    source.rename(source.with_name("moved"))
    try:
        assert main(["transfer", "--resume", str(run), "--batch-size", "6"]) == 2
        assert main(["transfer", "--resume", str(run)]) == 0
    finally:
        source.with_name("moved").rename(source)


def test_weights_are_read_again_only_for_networks_that_begin(source, few, tmp_path, capsys):
    """Of an entry with a network for each combination, the networks that have begun need them no more."""
    weights = Path(shutil.copytree(source, tmp_path / "weights"))
    start = ["transfer", *on(few, tmp_path), *SMALL, "--name", "a", "--models", "attention_cnn+frozen+alone"]
    assert main([*start, "--channels", "R,G", "--epochs", "1", "--weights", str(weights)]) == 0
    shutil.rmtree(weights)
    run = tmp_path / "transfer/a"
    assert main(["transfer", "--resume", str(run), "--epochs", "2"]) == 0
    assert len(runner.history(run)) == 4
    shutil.rmtree(run / "checkpoints/attention_cnn+frozen+alone/G")
    assert main(["transfer", "--resume", str(run), "--epochs", "3"]) == 2
    assert f"--weights {weights} cannot be read" in capsys.readouterr().err
