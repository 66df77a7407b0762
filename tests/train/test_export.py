"""The command `export`: files of the models of whole runs, and what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import polychrome
from polychrome.engine import export
from polychrome.engine.data.files import decode
from polychrome.engine.data.given import image_sets
from polychrome.engine.data.opening import Opened, Wanted
from polychrome.train.data import make_loader
from polychrome.train.finished import Run
from polychrome.train.run import main
from tests.train.small import QUICK

SMALL = ["--image-size", "32", "--batch-size", "24", "--epochs", "1", *QUICK]
MODELS = "simple_cnn,pool_attention_cnn,naive_cnn"
OURS = ("engine", "kernels", "models", "polychrome", "train")

# Runs a package on images and a mask that are there, where torch is all that can be imported.
STANDALONE = """
import sys
import torch
run = torch._inductor.aoti_load_package(sys.argv[1])
with torch.no_grad():
    logits = [run(*arguments) for arguments in torch.load("arguments.pt")]
torch.save(logits, "logits.pt")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def run(stripes, tmp_path_factory):
    """A run of three models, tested on RGB and RG."""
    out = tmp_path_factory.mktemp("exported")
    start = ["--data", str(stripes), "--out", str(out), "--name", "a", *SMALL, "--channels", "RGB,RG"]
    assert main(["task1", *start, "--models", MODELS]) == 0
    return out / "task1/a"


@pytest.fixture(scope="module")
def images(run, stripes):
    """The run's test images as it tested on them, [18, 3, 32, 32], 0..1."""
    trained = Run(run, "cpu")
    shown = image_sets(tuple(stripes / f"images/test {number}.jpg" for number in range(18)), trained.data)[0][1]
    with make_loader(
        Opened(shown, Wanted("torch", torch.device("cpu"), workers=0)), "images", trained.settings
    ) as loader:
        return (next(iter(loader.epoch(0))).images.float() / 255).contiguous()


def needs(file_format):
    """Skip where the packages of a format are not installed."""
    for package in import_module(f"polychrome.engine.export.{file_format}").PACKAGES:
        pytest.importorskip(package)


def predicted(run, model):
    """Return the classes that the run's own test put the images into."""
    with (run / f"predictions-{model}.csv").open() as file:
        return [int(row["predicted"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "file_format", ["safetensors", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "pt2"))]
)
@pytest.mark.parametrize("model", ["simple_cnn", "pool_attention_cnn"])
def test_an_exported_model_predicts_what_the_run_did(run, images, model, file_format, tmp_path, capsys):
    needs(file_format)
    path = tmp_path / f"new/x.{file_format}"
    assert main(["export", str(run), "--format", file_format, "--model", model, "--output", str(path)]) == 0
    assert "same class for 100% of the images, on 16 images of the test split" in capsys.readouterr().out
    said = json.loads((path.parent / f"x.{file_format}.json").read_text())
    assert said["check"]["difference"] < 1e-4
    assert (said["model"], said["classes"], said["image_size"]) == (model, ["0", "1", "2"], 32)
    assert sorted(os.listdir(path.parent)) == [f"x.{file_format}", f"x.{file_format}.json"]
    mask = (torch.ones(len(images), 3, dtype=torch.bool),) * said["any_channels"]
    assert export.load(path)(images, *mask).argmax(1).tolist() == predicted(run, model)


@pytest.mark.parametrize(
    "model",
    ["pool_attention_cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("simple_cnn", "naive_cnn"))],
)
def test_preprocessing_in_the_file_gives_what_predict_does(run, stripes, model, tmp_path, capsys):
    needs("onnx")
    path = tmp_path / "whole.onnx"
    command = ["export", str(run), "--format", "onnx", "--model", model, "--preprocessing"]
    assert main([*command, "--output", str(path)]) == 0
    assert "same class for 100% of the images, on 16 images of the test split" in capsys.readouterr().out
    trained, whole = polychrome.load(run, model), export.load(path)
    said = json.loads((tmp_path / "whole.onnx.json").read_text())
    absent = "anything, where the mask is false" if said["any_channels"] else "the channel's mean * 255, rounded"
    assert said["inputs"]["pixels"] == {
        "dtype": "uint8", "shape": ["batch", "height", "width", 3], "values": "as stored", "absent_channels": absent
    }  # fmt: skip
    assert said["outputs"] == {"probabilities": {"dtype": "float32", "shape": ["batch", 3]}}
    mask = (torch.ones(1, 3, dtype=torch.bool),) * said["any_channels"]
    files = [stripes / f"images/test {number}.jpg" for number in range(18)]
    same = 0
    for file in files:
        pixels = torch.from_numpy(np.array(decode.rgb(file)))
        for part in (pixels, pixels[:37, 5:], pixels[3:, :29]):  # other sizes and shapes
            found, wanted = whole(part[None], *mask)[0], trained.predict(np.ascontiguousarray(part.numpy()))
            given = dict(zip(trained.classes, found.tolist(), strict=True))
            assert given == pytest.approx(wanted.probabilities, abs=2e-3)
            same += max(given, key=given.get) == wanted.name
    assert same >= 0.99 * 3 * len(files)
    squares = torch.from_numpy(np.stack([decode.rgb(file)[:32, :32] for file in files[:4]]))
    together = whole(squares, *(each.repeat(4, 1) for each in mask))
    assert together.shape == (4, 3)
    assert together.sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    # From equal preprocessed images, the network alone agrees more closely.
    core = tmp_path / "core.onnx"
    assert main([*command[:-1], "--output", str(core)]) == 0
    x = trained.preprocess(files)
    mean, std = torch.tensor([trained._channels.mean, trained._channels.std])[:, :, None, None]
    logits = export.load(core)(x * std + mean, *(each.repeat(len(files), 1) for each in mask))
    assert (logits.softmax(1) - trained(x).softmax(1)).abs().max() < 1e-4


def test_preprocessing_goes_into_onnx_alone(run, capsys):
    assert main(["export", str(run), "--format", "safetensors", "--preprocessing"]) == 2
    assert "--preprocessing goes into onnx files alone, not into safetensors" in capsys.readouterr().err


def test_preprocessing_is_checked_on_random_images_where_the_data_is_gone(run, stripes, tmp_path, capsys):
    needs("onnx")
    copy = shutil.copytree(run, tmp_path / "run")
    settings = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(settings.replace(str(stripes), "/gone"))
    assert main(["export", str(copy), "--format", "onnx", "--model", "simple_cnn", "--preprocessing"]) == 0
    assert sorted(os.listdir(copy / "export")) == ["simple_cnn-whole.onnx", "simple_cnn-whole.onnx.json"]
    assert "on 16 random images" in capsys.readouterr().out


@pytest.mark.slow
def test_a_package_runs_where_nothing_of_ours_is_imported(run, images, tmp_path):
    path = tmp_path / "x.pt2"
    command = ["export", str(run), "--format", "pt2", "--model", "pool_attention_cnn", "--output", str(path)]
    assert main(command) == 0
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, True]]).repeat(6, 1)
    (tmp_path / "elsewhere").mkdir()
    arguments = [(images[:batch], mask[:batch]) for batch in (1, 3, 16)]
    torch.save(arguments, tmp_path / "elsewhere/arguments.pt")
    (tmp_path / "script.py").write_text(STANDALONE)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(path)],
        cwd=tmp_path / "elsewhere",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = done.stdout.split()
    assert "torch" in imported
    assert not set(imported) & set(OURS)
    trained = Run(run, "cpu")
    ((_, model),) = trained.networks("pool_attention_cnn", {"RGB": (0, 1, 2)})
    mean, std = torch.tensor([trained.channels.mean, trained.channels.std])[:, :, None, None]
    for (values, present), logits in zip(arguments, torch.load(tmp_path / "elsewhere/logits.pt"), strict=True):
        standardised = (values - mean) / std
        one_by_one = [model(image[None, kept]) for image, kept in zip(standardised, present, strict=True)]
        torch.testing.assert_close(logits, torch.cat(one_by_one), atol=1e-5, rtol=1e-4)


def test_without_further_words_the_best_model_goes_into_the_runs_folder(run, tmp_path):
    needs("safetensors")
    copy = shutil.copytree(run, tmp_path / "run")
    assert main(["export", str(copy), "--format", "safetensors"]) == 0
    found = json.loads((copy / "results.json").read_text())["models"]
    best = max(found, key=lambda name: (found[name]["val"]["accuracy"], -found[name]["val"]["loss"]))
    assert sorted(os.listdir(copy / "export")) == [f"{best}.safetensors", f"{best}.safetensors.json"]
    assert export.load(copy / f"export/{best}.safetensors").description.model == best


def test_channels_pick_the_network_of_a_model_that_has_several(run, images, tmp_path):
    needs("safetensors")
    copy = shutil.copytree(run, tmp_path / "run")
    command = ["export", str(copy), "--format", "safetensors", "--model", "naive_cnn"]
    assert main(command) == 0
    assert main([*command, "--channels", "GR"]) == 0
    whole, part = (export.load(copy / f"export/{name}.safetensors") for name in ("naive_cnn", "naive_cnn-RG"))
    assert whole(images).argmax(1).tolist() == predicted(run, "naive_cnn")
    assert part.description.channels.names == ("R", "G")
    weights = torch.load(copy / "checkpoints/naive_cnn/RG/best.pt")["model"]
    assert all(torch.equal(part.model.state_dict()[name], value) for name, value in weights.items())


@pytest.fixture(scope="module")
def several(stripes, tmp_path_factory):
    """A run of models of each kind with a network for each combination."""
    out = tmp_path_factory.mktemp("several")
    start = ["--data", str(stripes), "--out", str(out), "--name", "a", *SMALL, "--channels", ",".join(ALONE)]
    assert main(["task1", *start, "--models", ",".join(SEVERAL)]) == 0
    return out / "task1/a"


SEVERAL = ("simple_cnn+alone", "pool_attention_cnn+alone", "naive_cnn")
ALONE = ("GBR", "RG", "GR", "B")


@pytest.mark.parametrize("channels", ALONE)
@pytest.mark.parametrize("model", SEVERAL)
@pytest.mark.parametrize("file_format", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_network_for_one_combination_is_exported_for_the_channels_it_takes_or_refused(
    several, images, tmp_path, capsys, file_format, model, channels
):
    """The file, given the channels that it names, answers as `load` does for the combination."""
    needs(file_format)
    path = tmp_path / f"x.{file_format}"
    command = ["export", str(several), "--format", file_format, "--model", model, "--channels", channels]
    status = main([*command, "--output", str(path)])
    if model == "simple_cnn+alone" and len(channels) < 3:
        error = capsys.readouterr().err
        assert (status, error.count("\n")) == (2, 1)
        assert f"--channels {channels}: simple_cnn+alone has a network there that takes all channels" in error
        assert list(tmp_path.iterdir()) == []
        return
    assert status == 0
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    names = about["channels"]["names"]
    assert sorted(names) == sorted(channels)
    given = images[:, ["RGB".index(name) for name in names]].contiguous()
    mask = (torch.ones(len(given), len(names), dtype=torch.bool),) * about["any_channels"]
    found = export.load(path)(given, *mask).softmax(1)
    trained = polychrome.load(several, model, channels=channels)
    mean, std = torch.tensor([trained._channels.mean, trained._channels.std])[:, :, None, None]
    wanted = trained((images - mean) / std, channels).softmax(1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_a_checkpoint_alone_is_exported_as_its_run_is(run, tmp_path, monkeypatch, capsys):
    needs("safetensors")
    monkeypatch.chdir(tmp_path)
    for model, best, options in (("simple_cnn", "best.pt", []), ("naive_cnn", "RG/best.pt", ["--channels", "RG"])):
        command = ["export", "--format", "safetensors", *options]
        assert main([*command, str(run), "--model", model, "--output", "whole.safetensors"]) == 0
        assert main([*command, str(run / "checkpoints" / model / best)]) == 0
        assert capsys.readouterr().out.count("on 16 images of the test split") == 2
        alone, whole = (
            export.load(Path("-".join((model, *options[1:])) + ".safetensors")),
            export.load("whole.safetensors"),
        )
        assert alone.description == whole.description
        assert all(torch.equal(value, alone.model.state_dict()[key]) for key, value in whole.model.state_dict().items())
    assert main([*command[:3], str(run / "checkpoints/simple_cnn/best.pt"), "--model", "naive_cnn"]) == 2
    assert "best.pt has one network: leave out model='naive_cnn'" in capsys.readouterr().err


def test_data_that_has_moved_is_named_or_replaced_by_noise(run, stripes, tmp_path, capsys):
    needs("safetensors")
    copy = shutil.copytree(run, tmp_path / "run")
    settings = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(settings.replace(str(stripes), "/gone"))
    command = ["export", str(copy), "--format", "safetensors", "--model", "simple_cnn"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "the run's images cannot be read (no data folder at /gone" in printed
    assert "on 16 random images" in printed
    said = copy / "export/simple_cnn.safetensors.json"
    assert json.loads(said.read_text())["check"]["on"] == "random images"
    assert main([*command, "--data", str(stripes)]) == 0
    assert json.loads(said.read_text())["check"]["on"] == "images of the test split"
    assert main([*command, "--data", "/gone"]) == 2
    assert "no data folder at /gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--format'"),
        (["--format", "h5"], "'h5' is not one of 'pt2', 'onnx', 'safetensors'"),
        (["--format", "pt2", "--model", "resnet18"], "the run has no model 'resnet18'; it trained simple_cnn"),
        (["--format", "pt2", "--model", "naive_cnn", "--channels", "B"], "has a network for each of RGB, RG, none for"),
        (["--format", "pt2", "--model", "simple_cnn", "--channels", "RG"], "simple_cnn is one for all channels"),
        (["--format", "pt2", "--model", "naive_cnn", "--channels", "all"], "takes one combination of channels"),
        (["--format", "safetensors", "--output", "x.onnx"], "--output x.onnx must end in .safetensors"),
        (["--format", "safetensors", "--output", "results.json/x.safetensors"], "cannot be written: Not a directory"),
        (["--format", "safetensors", "--device", "cpu"], "--device: a pt2 is compiled for a device"),
    ],
)
def test_wrong_arguments_leave_the_run_as_it_was(run, arguments, message, monkeypatch, capsys):
    needs("safetensors")
    monkeypatch.chdir(run)
    before = sorted(run.rglob("*"))
    assert main(["export", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert sorted(run.rglob("*")) == before


def test_a_run_without_its_checkpoint_is_refused(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints/simple_cnn/best.pt").unlink()
    assert main(["export", str(copy), "--format", "pt2", "--model", "simple_cnn"]) == 2
    assert "checkpoints/simple_cnn/best.pt: no such checkpoint" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--format", "pt2"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert not (copy / "export").exists()
