"""The networks that come with the package: by name, without a net or a run, right on images of their kind."""

import json
import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polychrome
from polychrome.engine.data.sets import generated, listing
from polychrome.engine.errors import UserError
from polychrome.engine.machine import hardware
from polychrome.engine.training import checkpoint
from polychrome.train import pretrained
from polychrome.train.pretrained.__main__ import main as add
from polychrome.train.run import main
from polychrome.train.trained import TrainedModel
from tests.train import runner

ROOT = Path(__file__).resolve().parents[2]
SHAPES = "prism4_small-shapes"
FILE = pretrained.FILES[SHAPES]
COMBINATIONS = ("RGB", "RG", "GB", "RB", "R", "G", "B")


@pytest.fixture(scope="module")
def model():
    return polychrome.load(SHAPES, device="cpu")


def drawn(each: int) -> tuple[list[np.ndarray], list[int]]:
    """Return new images of the generated classes, `each` of every class, and their labels."""
    labels = [label for label in range(len(generated.NAMES)) for _ in range(each)]
    rng = np.random.default_rng(2026)  # the generated set has seeds of two numbers
    return [generated.draw(label, rng) for label in labels], labels


def test_the_name_is_enough_without_a_network_in_any_folder(tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError("no net here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", refused)
    found = polychrome.load(SHAPES, device="cpu")
    assert type(found) is TrainedModel
    assert (found.name, found.combination, found.channels) == ("prism4_small", "RGB", ("R", "G", "B"))
    assert (found.classes, found.dtype, found.image_size, found.crop) == (generated.NAMES, "uint8", 64, 1.0)
    assert sum(each.numel() for each in found.network.parameters()) == 421_362
    image = generated.draw(generated.NAMES.index("dotted ring"), np.random.default_rng(0))
    said = found.predict(image)
    assert said.name == "dotted ring"
    assert said.probability == max(said.probabilities.values()) > 0.5
    assert sum(said.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def inputs(model):
    images, labels = drawn(2)
    return model.preprocess(images), torch.tensor(labels)


@pytest.mark.parametrize("channels", COMBINATIONS)
def test_every_combination_of_channels_is_classified(model, inputs, channels):
    x, labels = inputs
    assert x.shape == (100, 3, 64, 64)
    assert (model(x, channels).argmax(1) == labels).float().mean() >= 0.97


def test_arrays_of_some_channels_are_classified(model):
    images, labels = drawn(1)
    for channels, places in (("RB", [0, 2]), ("G", [1])):
        found = model.predict([image[..., places] for image in images], channels)
        assert np.mean([each.name == generated.NAMES[label] for each, label in zip(found, labels, strict=True)]) >= 0.9


def test_the_file_is_small_and_names_no_place_of_the_machine_that_made_it():
    assert FILE.stat().st_size < 3e6
    content = checkpoint.load(FILE)
    assert sorted(content) == ["epoch", "format", "model", "name", "run"]
    assert {value.dtype for value in content["model"].values()} == {torch.float32, torch.int64}
    assert not re.search(r"(^|[\s\"'])~?/", str(content["run"]))


def test_it_is_a_checkpoint_like_any_with_its_checksum(model, tmp_path):
    copy = shutil.copy(FILE, tmp_path / "best.pt")
    images, _ = drawn(1)
    assert polychrome.load(copy, device="cpu").predict(images[:5]) == model.predict(images[:5])
    with pytest.raises(UserError, match=r"best.pt has one network: leave out model='x'"):
        polychrome.load(copy, "x")
    with pytest.raises(UserError, match=f"{SHAPES} has one network: leave out model='x'"):
        polychrome.load(SHAPES, "x")
    damaged = bytearray(FILE.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    copy.write_bytes(damaged)
    with pytest.raises(UserError, match=r"best.pt is damaged or is not a checkpoint \(its checksum is wrong\)"):
        polychrome.load(copy)


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = f"prism4-shapes: no such run folder or best.pt; pretrained networks: {', '.join(pretrained.FILES)}"
    with pytest.raises(UserError, match=re.escape(said)):
        polychrome.load("prism4-shapes")
    for command in (["predict", "prism4-shapes", "x.jpg"], ["export", "prism4-shapes", "--format", "safetensors"]):
        assert main(command) == 2
        assert said in capsys.readouterr().err


def test_what_has_the_name_in_the_working_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = checkpoint.load(FILE)
    content["run"]["results"]["data"]["class_names"] = [f"own {number}" for number in range(50)]
    checkpoint.save(Path(SHAPES), content)
    assert polychrome.load(SHAPES).classes[0] == "own 0"
    Path(SHAPES).unlink()
    assert polychrome.load(SHAPES).classes[0] == generated.NAMES[0]
    Path(SHAPES).mkdir()
    with pytest.raises(UserError, match=f"{SHAPES} is not a run folder: it has no config.toml"):
        polychrome.load(SHAPES)


@pytest.mark.parametrize("native", [True, False])
def test_networks_of_bf16_are_used_in_fp32_where_bf16_is_emulated(model, tmp_path, monkeypatch, capsys, native):
    monkeypatch.setattr(hardware, "native_precision", lambda on: "bf16" if native else "fp32")
    content = checkpoint.load(FILE)
    config = content["run"]["config"]
    content["run"]["config"] = config.replace('precision = "fp32"', 'precision = "bf16"')
    assert content["run"]["config"] != config
    checkpoint.save(tmp_path / "best.pt", content)
    found = polychrome.load(tmp_path / "best.pt", device="cpu")
    assert found.precision == ("bf16" if native else "fp32")
    assert found.arithmetic == (None if native else "in fp32, as bf16 is only emulated here")
    image = (255 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    expected, probabilities = model.predict(image).probabilities, found.predict(image).probabilities
    error = max(abs(probabilities[name] - share) for name, share in expected.items())
    assert 1e-5 < error < 0.05 if native else error == 0
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
    assert main(["predict", str(tmp_path / "best.pt"), str(tmp_path / "x.png")]) == 0
    assert ("channels RGB, in fp32, as bf16 is only emulated here" in capsys.readouterr().err) != native


def flat(text):
    return " ".join(text.split())


def test_commands_take_the_name(model, tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    from polychrome.engine import export

    monkeypatch.chdir(tmp_path)
    images, _ = drawn(1)
    Image.fromarray(images[7]).save("photo.png")
    assert main(["predict", SHAPES, "photo.png", "--channels", "RG", "--output", "found.csv"]) == 0
    assert Path("found.csv").read_text().splitlines()[1].startswith(f"photo.png,{generated.NAMES[7]},0.")
    assert main(["predict", SHAPES, "photo.png", "--model", "x"]) == 2
    assert f"{SHAPES} has one network" in capsys.readouterr().err

    def drawn_whole():
        raise AssertionError("the whole generated set for a check of 16 images")

    monkeypatch.setattr(generated, "ensure", drawn_whole)
    assert main(["export", SHAPES, "--format", "safetensors"]) == 0
    assert "same class for 100% of the images, on 16 new images of the generated classes" in flat(
        capsys.readouterr().out
    )
    check = json.loads(Path("prism4_small.safetensors.json").read_text())["check"]
    assert (check["images"], check["agreement"]) == (16, 1.0)
    exported = export.load(Path("prism4_small.safetensors"))
    assert exported.description.classes == generated.NAMES
    for name, value in model.network.state_dict().items():
        assert torch.equal(exported.model.state_dict()[name], value), name


def test_a_prediction_starts_without_the_packages_that_it_does_not_need(tmp_path):
    """torchvision brings the compiler: together they take longer than torch itself."""
    Image.fromarray(drawn(1)[0][0]).save(tmp_path / "photo.png")
    code = (
        "import sys; from train.run import main; status = main(sys.argv[1:]);"
        "print(status, sorted({'torchvision', 'torch._dynamo', 'matplotlib', 'nvidia.dali'} & set(sys.modules)))"
    )
    done = runner.run([sys.executable, "-c", code, "predict", SHAPES, str(tmp_path / "photo.png"), "--device", "cpu"])
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_checkpoint_is_put_among_them_without_the_places_of_its_run(tmp_path, monkeypatch, capsys, model):
    content = checkpoint.load(FILE)
    content["run"]["config"] = content["run"]["config"].replace('out = "runs"', 'out = "/home/me"\ndata = "/home/data"')
    content["run"]["results"]["data"] |= {"root": "/home/data", "contents": {"train": "0" * 64}}
    checkpoint.save(tmp_path / "best.pt", content)
    monkeypatch.setattr("polychrome.train.pretrained.__main__.FOLDER", tmp_path)
    assert add([str(tmp_path / "best.pt"), "new"]) == 0
    assert f"{tmp_path / 'new.pt'}: 1,7" in capsys.readouterr().out
    assert "/home" not in str(checkpoint.load(tmp_path / "new.pt")["run"])
    images, _ = drawn(1)
    assert polychrome.load(tmp_path / "new.pt", device="cpu").predict(images[:5]) == model.predict(images[:5])
    assert add([str(tmp_path / "gone.pt"), "new"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone.pt'}: no such checkpoint\n"


@pytest.mark.slow
def test_the_figures_of_the_page_are_measured(model):
    """The accuracies of docs/use.md on the test images of the generated set."""
    images = listing.read(generated.ensure())
    test = images.splits["test"]
    files = [images.root / path for path in test.paths]
    row = re.search(rf"^\| `{SHAPES}` \|(.*)\|$", (ROOT / "docs/use.md").read_text(encoding="utf-8"), re.M)[1]
    written = [float(cell) for cell in row.split("|")]
    assert len(files) == 450
    for channels, figure in zip(COMBINATIONS, written, strict=True):
        found = model.predict(files, channels)
        right = sum(each.name == generated.NAMES[label] for each, label in zip(found, test.labels, strict=True))
        # Another machine may round one image to the other side.
        assert 100 * right / len(files) == pytest.approx(figure, abs=0.3), channels
