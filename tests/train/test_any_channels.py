"""Whole runs on images of other than three channels."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import polychrome
from polychrome.engine import export
from polychrome.engine.run_folder import RunFolder
from polychrome.train.run import main
from tests.conftest import draw
from tests.train.runner import results
from tests.train.small import QUICK

SMALL = ["--image-size", "32", "--batch-size", "12", "--epochs", "1", *QUICK]
NAMES = ("red", "green", "blue", "nir")
FILLS = ("any_channels", "estimated")
TOLD = ("prism4_small+places", *(f"simple_cnn+{fill}" for fill in FILLS))


def write_stacks(root, channels, names=None, dtype=np.uint16, per_class=(6, 3, 3)):
    """Write a data folder of striped stacks [height, width, channels] with list files."""
    (root / "stacks").mkdir(parents=True)
    for split, count in zip(("train", "val", "test"), per_class, strict=True):
        lines = []
        for number in range(3 * count):
            image = draw(number % 3, 1000 * len(split) + number)[:40, :40, :1].astype(np.float64)
            spread = image * np.linspace(1, 40, channels) + 100 * np.arange(channels)
            np.save(root / f"stacks/{split}_{number}.npy", spread.astype(dtype))
            lines.append(f"stacks/{split}_{number}.npy {number % 3}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    if names:
        (root / "channels.txt").write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Stacks of red, green, blue and nir in 16 bits, and a run on them."""
    data = write_stacks(tmp_path_factory.mktemp("four") / "data", 4, NAMES)
    start = ["--data", str(data), "--out", str(data.parent), "--name", "x", *SMALL]
    assert main(["task1", *start, "--models", "pool_attention_cnn,baseline_cnn,naive_cnn", "--plots"]) == 0
    return data.parent / "task1/x"


def test_networks_keep_the_means_and_deviations_that_they_were_trained_with(tmp_path, capsys):
    """Where the training's files are others by now, and the run goes on all the same."""
    data, run = write_stacks(tmp_path / "data", 2, dtype=np.float32), tmp_path / "task1/x"
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL]
    assert main(["task1", *start, "--models", "baseline_cnn"]) == 0
    before, image = results(run)["data"], data / "stacks/test_0.npy"
    probability = polychrome.load(run).predict(image).probability
    training = sorted(data.glob("stacks/train_*"))
    for file in training:
        np.save(file, 100 * np.load(file))
    go_on = ["task1", "--resume", str(run), "--models", "baseline_cnn,pool_attention_cnn", "--changed-data"]
    capsys.readouterr()
    assert main(go_on) == 0
    said = " ".join(capsys.readouterr().out.split())
    data_now = results(run)["data"]
    for name in ("channel_mean", "channel_std"):
        assert data_now[name] == before[name]
    note = "channels are standardised as before by their mean and deviation, such as "
    assert said.count(note) == sum(line.startswith(note) for line in data_now["notes"]) == 1
    assert ": other units?" in said
    assert polychrome.load(run, model="baseline_cnn").predict(image).probability == probability
    assert main(["evaluate", str(run)]) == 0
    assert re.search(r"(\d+) of \1 figures are those of", capsys.readouterr().out)
    found = RunFolder(run).read_results()
    found["data"]["channel_mean"] = [100 * mean for mean in before["channel_mean"]]  # as an earlier version had it
    RunFolder(run).write_results(found)
    assert main(["predict", str(run), str(image)]) == 2
    assert "has other means and deviations of channels than" in capsys.readouterr().err
    found["data"]["channel_mean"] = before["channel_mean"]
    RunFolder(run).write_results(found)
    for file in data.glob("stacks/*"):
        np.save(file, np.load(file).astype(np.uint16))
    assert main(go_on) == 2
    assert f"{run} was trained on fractions, {data} has whole numbers: wanted one type" in capsys.readouterr().err


def test_four_named_channels_are_tested_in_every_combination(four):
    found = results(four)
    assert found["data"]["channels"] == list(NAMES)
    mean = np.mean([np.load(file).mean((0, 1)) for file in sorted(four.parents[1].glob("data/stacks/train_*"))], 0)
    np.testing.assert_allclose(found["data"]["channel_mean"], mean, rtol=1e-6)
    for entry in found["models"].values():
        assert len(entry["test"]) == 15
        assert list(entry["test"])[:2] == ["red+green+blue+nir", "red+green+blue"]
        assert list(entry["test"])[-1] == "nir"
    assert found["combinations"]["green+nir"] == ["green", "nir"]
    assert (four / "plots/predictions-baseline_cnn.png").stat().st_size > 10_000


def test_a_run_on_stacks_is_evaluated_and_used_for_single_files(four, capsys):
    assert main(["evaluate", str(four), "--channels", "nir+red,blue"]) == 0
    again = json.loads((four / "evaluation.json").read_text())["models"]["pool_attention_cnn"]["test"]
    assert again["blue"] == results(four)["models"]["pool_attention_cnn"]["test"]["blue"]
    assert list(again) == ["nir+red", "blue"]
    image = next((four.parents[1] / "data/stacks").glob("test_*.npy"))
    capsys.readouterr()
    assert main(["predict", str(four), str(image), "--model", "pool_attention_cnn", "--channels", "nir"]) == 0
    assert image.name in capsys.readouterr().out.replace("\n", "")


def test_a_model_that_is_shown_the_nearest_channels_is_evaluated_and_exported(four, tmp_path, capsys):
    """The channels of a stack are copies of each other: with any of them the network is shown all."""
    filled, whole = "baseline_cnn+any_channels", results(four)["models"]["baseline_cnn"]["test"]
    assert len({scores["loss"] for scores in whole.values()}) > 10
    assert main(["evaluate", str(four), "--model", filled]) == 0
    (found,) = (every := json.loads((four / "evaluation.json").read_text())["models"]).values()
    assert list(every) == [filled]
    assert found["protocol"] == "mask"
    assert found["test"].keys() == whole.keys()
    for scores in found["test"].values():
        assert scores == pytest.approx(whole["red+green+blue+nir"], rel=1e-4)
    assert "figures are those of" not in capsys.readouterr().out
    assert main(["evaluate", str(four), "--model", "baseline_cnn"]) == 0
    assert list(json.loads((four / "evaluation.json").read_text())["models"]) == ["baseline_cnn"]
    assert re.search(r"(\d+) of \1 figures are those of", " ".join(capsys.readouterr().out.split()))
    assert main(["evaluate", str(four), "--model", "pool_attention_cnn+any_channels"]) == 2
    assert "the run has no model 'pool_attention_cnn+any_channels'" in capsys.readouterr().err

    file = tmp_path / "x.safetensors"
    assert main(["export", str(four), "--model", filled, "--format", "safetensors", "--output", str(file)]) == 0
    exported, trained = export.load(file), polychrome.load(four, filled)
    assert exported.description.any_channels
    x = trained.preprocess(next((four.parents[1] / "data/stacks").glob("test_*.npy")), "green+nir")
    mask = torch.tensor([[False, True, False, True]])
    logits = exported.model(x.nan_to_num(0.0), mask)
    torch.testing.assert_close(logits, trained(x, "green+nir"), atol=1e-5, rtol=1e-5)


def test_an_image_that_names_some_of_the_channels_is_predicted_by_these(four, tmp_path, capsys):
    measured = pytest.importorskip("tests.engine.data.measured")
    file = tmp_path / "x.tif"
    file.write_bytes(measured.tiff(measured.drawn(2, height=40, width=40), ("nir", "red")))
    for model, shown in (
        ("pool_attention_cnn", "the model is shown the channels that it has"),
        ("baseline_cnn", "baseline_cnn is shown zeros in place of absent channels"),
        ("baseline_cnn+any_channels", "the model is shown the channels that it has"),
    ):
        assert main(["predict", str(four), str(file), "--model", model]) == 0
        said = capsys.readouterr().err
        assert f"x.tif lacks green, blue: {shown}" in said
        assert f"{model}, channels " in said
    for more in (["--channels", "red+blue"], ["--model", "naive_cnn"]):
        assert main(["predict", str(four), str(file), *more]) == 2
        assert "x.tif: lacks " in capsys.readouterr().err


def test_many_channels_are_tested_in_random_subsets_of_each_size(tmp_path):
    data = write_stacks(tmp_path / "data", 7)
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL]
    assert main(["task1", *start, "--models", "dynamic_cnn_v2,dynamic_cnn_v2+shuffle", "--plots"]) == 0
    found = results(tmp_path / "task1/x")
    labels = list(found["models"]["dynamic_cnn_v2"]["test"])
    assert labels == list(found["combinations"])
    assert labels[0] == "all"
    assert labels[-7:] == list("0123456")
    for size in range(2, 7):
        drawn = [tuple(found["combinations"][f"{size} of 7 #{number}"]) for number in (1, 2, 3)]
        assert len(set(drawn)) == 3
        assert all(len(set(chosen)) == size for chosen in drawn)
    assert (tmp_path / "task1/x/plots/channels_kept.png").exists() == (len(labels) > 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--channels", "red+swir"], "no channel 'swir'; the data has red, green, blue, nir"),
        (["--backend", "dali"], "use --backend torch"),
        (["--augmentations", "crop,jitter"], "augmentation jitter needs 8-bit images"),
    ],
)
def test_what_stacks_cannot_do_is_refused(four, tmp_path, capsys, arguments, message):
    start = ["--data", str(four.parents[1] / "data"), "--out", str(tmp_path), *SMALL, "--models", "baseline_cnn"]
    assert main(["task1", *start, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_stacks_of_differing_channel_counts_are_named(tmp_path, capsys):
    data = write_stacks(tmp_path / "data", 4)
    np.save(data / "stacks/train_3.npy", np.zeros((40, 40, 5), np.uint16))
    assert main(["task1", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]) == 2
    error = capsys.readouterr().err
    assert "stacks/train_0.npy has 4 channels, stacks/train_3.npy has 5" in error


def test_infinite_values_are_counted_and_the_file_left_out_and_missing_values_are_filled(tmp_path, capsys):
    data = write_stacks(tmp_path / "data", 4, dtype=np.float32)
    broken = np.load(data / "stacks/train_5.npy")
    broken[3, 4:8, 2] = np.nan
    broken[0, 0, 0] = np.inf
    np.save(data / "stacks/train_5.npy", broken)
    holed = np.load(data / "stacks/train_4.npy")
    holed[3, 4:8, 2] = np.nan
    np.save(data / "stacks/train_4.npy", holed)
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL, "--models", "baseline_cnn"]
    assert main(["task1", *start]) == 0
    found = results(tmp_path / "task1/x")["data"]
    (left_out,) = found["rejected_files"]
    assert (left_out["path"], left_out["reason"]) == ("stacks/train_5.npy", "1 of 6,400 values are infinite")
    assert found["notes"] == [
        "4 channels, 40 x 40, named 0, 1, 2, 3; values are float32",
        "1 stack with missing values, which become the mean of their channel, such as stacks/train_4.npy",
    ]
    assert "left out: stacks/train_5.npy" in capsys.readouterr().out
    assert main(["task1", *start[:-2], "--name", "y", "--strict"]) == 2


def test_evaluation_reads_a_split_as_the_run_did_whatever_its_files_alone_would_be_taken_for(tmp_path, capsys):
    """Most test images are of 16 bits, most images are not; missing values of test have another mean than training."""
    photos, deep = tmp_path / "photos", 0
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        lines = []
        for number in range(count):
            image = draw(number % 3, 100 * len(split) + number)[:40, :40]
            name = f"{split}{number}.{'tif' if split == 'test' and number else 'png'}"
            photos.mkdir(exist_ok=True)
            if name.endswith("tif"):
                Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(photos / name)
                deep += 1
            else:
                Image.fromarray(image).save(photos / name)
            lines.append(f"{name} {number % 3}\n")
        (photos / f"{split}.txt").write_text("".join(lines))
    stacks = write_stacks(tmp_path / "stacks", 3, dtype=np.float32)
    for number, file in enumerate(sorted(stacks.glob("stacks/*.npy"))):
        values = np.load(file) + 50.0 * file.name.startswith("test")
        values[:20, number % 30 : number % 30 + 10] = np.nan
        np.save(file, values)
    for data in (photos, stacks):
        start = ["--data", str(data), "--out", str(tmp_path), "--name", data.name, *SMALL]
        assert main(["task1", *start, "--models", "pool_attention_cnn"]) == 0
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / "task1" / data.name)]) == 0
        told = " ".join(capsys.readouterr().out.split())
        figures, equal = re.search(r"([0-9]+) of ([0-9]+) figures are those of", told).groups()[::-1]
        assert figures == equal
        assert main(["evaluate", str(tmp_path / "task1" / data.name), "--split", "test"]) == 0
        assert "figures are those of" in " ".join(capsys.readouterr().out.split())
        again = json.loads((tmp_path / "task1" / data.name / "evaluation.json").read_text())["models"]
        assert (
            again["pool_attention_cnn"]["test"]
            == results(tmp_path / "task1" / data.name)["models"]["pool_attention_cnn"]["test"]
        )


def test_tiff_pages_are_channels(tmp_path):
    data = tmp_path / "data"
    for split, count in (("train", 9), ("val", 3), ("test", 3)):
        for number in range(count):
            folder = data / split / "abc"[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            first, *others = (
                Image.fromarray(draw(number % 3, number)[:40, :40, 0].astype(np.uint16) * (page + 1))
                for page in range(5)
            )
            first.save(folder / f"{number}.tif", save_all=True, append_images=others)
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL, "--models", "pool_attention_cnn"]
    assert main(["task1", *start, "--channels", "all"]) == 0
    found = results(tmp_path / "task1/x")
    assert found["data"]["channels"] == list("01234")
    assert len(found["models"]["pool_attention_cnn"]["test"]) == 31


def test_patches_of_a_scene_train(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat(rng.integers(0, 4, (4, 4)), 8, 0), 8, 1).astype(np.uint8)
    cube = (rng.normal(500, 20, (32, 32, 6)) + 60 * labels[..., None] * np.arange(6)).astype(np.uint16)
    np.savez(tmp_path / "scene.npz", cube=cube, labels=labels)
    assert main(["patches", str(tmp_path / "scene.npz"), str(tmp_path / "data"), "--size", "5"]) == 0
    assert "patches of 5 x 5 x 6" in capsys.readouterr().out
    start = ["--data", str(tmp_path / "data"), "--out", str(tmp_path), "--name", "x", *SMALL]
    assert main(["task1", *start, "--models", "dynamic_cnn_v2", "--image-size", "8", "--epochs", "4"]) == 0
    found = results(tmp_path / "task1/x")["models"]["dynamic_cnn_v2"]["test"]
    assert found["all"]["accuracy"] > 0.5


def test_scan_shows_the_channels_and_names_what_does_not_fit(four, tmp_path, capsys):
    data = four.parents[1] / "data"
    assert main(["scan", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "40 files: 36 used, 4 ignored (4 lists and names)" in printed
    assert all(name in printed for name in NAMES)
    other = write_stacks(tmp_path / "data", 4)
    np.save(other / "stacks/train_3.npy", np.zeros((40, 40, 5), np.uint16))
    assert main(["scan", str(other)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no single data set: " in printed
    assert "stacks/train_3.npy has 5" in printed


def test_predict_takes_all_of_many_channels_by_default_and_refuses_other_counts(tmp_path, stripes, capsys):
    data = write_stacks(tmp_path / "data", 7, dtype=np.uint8)
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL, "--models", "baseline_cnn"]
    assert main(["task1", *start]) == 0
    run = str(tmp_path / "task1/x")
    assert main(["predict", run, str(data / "stacks/test_0.npy")]) == 0
    assert "channels all" in capsys.readouterr().err
    assert main(["predict", run, str(stripes / "images/test 0.jpg")]) == 2
    assert "has channels R, G, B, wanted some of 0, 1, 2, 3, 4, 5, 6" in capsys.readouterr().err


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, capsys):
    data = write_stacks(tmp_path / "data", 7)
    start = ["--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    for arguments, message in (
        (["--models", "dynamic_cnn_v1+cycle"], "channel sampling cycle takes up to 5 channels, got 7"),
        (["--models", "naive_cnn"], "naive_cnn is a network for each combination of channels: name 1 to 15"),
        (["--models", "naive_cnn", "--channels", "shuffled"], "not 0"),
    ):
        assert main(["task1", *start, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_one_and_of_several_letters_do_not_collide(tmp_path):
    data = write_stacks(tmp_path / "data", 3, ("b", "g", "bg"))
    start = ["--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL, "--models", "baseline_cnn"]
    assert main(["task1", *start]) == 0
    found = results(tmp_path / "task1/x")["models"]["baseline_cnn"]["test"]
    assert list(found) == ["b+g+bg", "b+g", "b+bg", "g+bg", "b", "g", "bg"]


@pytest.fixture(scope="module")
def told(four, tmp_path_factory):
    """A run on the stacks of networks that know which channels they are shown."""
    data, out = four.parents[1] / "data", tmp_path_factory.mktemp("told")
    start = ["--data", str(data), "--out", str(out), "--name", "x", "--models", ",".join(TOLD), *SMALL]
    assert main(["task1", *start]) == 0
    return out / "task1/x"


@pytest.mark.parametrize("entry", TOLD)
def test_a_model_that_knows_its_channels_is_told_them_in_every_use(four, told, capsys, entry):
    data, run, model = four.parents[1] / "data", str(told), ["--model", entry]
    assert results(told)["models"][entry]["protocol"] == "mask"

    assert main(["evaluate", run, *model, "--channels", "all"]) == 0
    agreed = re.search(r"(\d+) of (\d+) figures are", capsys.readouterr().out)
    assert agreed[1] == agreed[2] != "0"

    image = str(next((data / "stacks").glob("test_*.npy")))
    said = set()
    for channels in ("red+green", "blue+nir"):
        assert main(["predict", run, image, *model, "--channels", channels]) == 0
        said.add(capsys.readouterr().out.replace(channels, ""))
    # the channels of a stack are copies of each other: an absent one that is filled in is as if it were there
    if entry.endswith("estimated"):  # up to what the covariance leaves unexplained
        shares = np.array([re.findall(r"(?<=,)[\d.]+(?=[,\n])", each) for each in said], float)
        assert np.ptp(shares, 0).max() < 1e-3
    else:
        assert len(said) == (1 if entry.endswith("any_channels") else 2)


@pytest.mark.parametrize(
    ("entry", "format"),
    [
        ("prism4_small+places", "safetensors"),
        *((f"simple_cnn+{fill}", format) for fill in FILLS for format in ("safetensors", "onnx", "pt2")),
    ],
)
def test_a_model_that_knows_its_channels_is_told_them_where_it_is_exported(told, entry, format):
    assert main(["export", str(told), "--model", entry, "--format", format]) == 0
    if format == "safetensors":
        assert export.load(told / f"export/{entry}.safetensors").model.fixed_places
