"""A trained network in Python and by `predict`: files, folders, arrays and tensors get what the run's tests got."""

import csv
import io
import json
import re
import shutil
import tarfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import polychrome
from polychrome.engine import console
from polychrome.engine.errors import UserError
from polychrome.engine.report import printed
from polychrome.train.commands.predict import as_csv, as_table
from polychrome.train.run import main
from polychrome.train.trained import Prediction
from tests.train.small import QUICK
from tests.train.test_any_channels import write_stacks

SMALL = ["--image-size", "24", "--batch-size", "24", "--epochs", "2", *QUICK]
MODELS = ["simple_cnn", "prism4_small", "pool_attention_cnn+alone"]


@pytest.fixture(scope="module")
def run(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    start = ["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *SMALL]
    assert main([*start, "--models", ",".join(MODELS)]) == 0
    return out / "task1/a"


@pytest.fixture
def files(stripes):
    return [stripes / f"images/test {number}.jpg" for number in range(18)]


def of_run(run, model, column="RGB"):
    """Return the classes that the run predicted for its test images, by file name."""
    with open(run / f"predictions/{model}.csv", newline="") as file:
        return {Path(row["image"]).name: row[column] for row in csv.DictReader(file) if row["split"] == "test"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("channels", [None, "G", "RB"])
def test_files_get_what_the_run_predicted(run, files, model, channels):
    trained = polychrome.load(run, model, channels)
    found = trained.predict(files)
    assert {Path(each.path).name: each.name for each in found} == of_run(run, model, channels or "RGB")
    assert all(
        list(each.probabilities) == sorted(trained.classes, key=lambda c: -each.probabilities[c]) for each in found
    )
    assert all(sum(each.probabilities.values()) == pytest.approx(1, abs=1e-5) for each in found)
    assert all(each.probability == max(each.probabilities.values()) for each in found)


@pytest.mark.parametrize("model", MODELS)
def test_arrays_tensors_and_pillow_images_get_what_their_file_gets(run, files, model):
    trained = polychrome.load(run, model)
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files[:3]]
    expected = [trained.predict(file).probabilities for file in files[:3]]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    for images in (arrays, tensors, np.stack(arrays), torch.stack(tensors), [Image.open(file) for file in files[:3]]):
        found = trained.predict(images)
        assert [each.path for each in found] == [None] * 3
        for each, wanted in zip(found, expected, strict=True):
            assert each.probabilities == pytest.approx(wanted, abs=1e-6)
    assert trained.predict(arrays[0]).probabilities == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("model", ["simple_cnn", "prism4_small"])
def test_the_network_runs_on_what_preprocess_makes(run, files, model):
    trained = polychrome.load(run, model)
    x = trained.preprocess(files[:4])
    assert x.shape == (4, 3, 24, 24)
    assert trained.preprocess(np.asarray(Image.open(files[0]))).sub(x[:1]).abs().max() < 1e-6
    for channels in (None, "G"):
        shares = trained(x, channels).softmax(1)
        for row, each in zip(shares, trained.predict(files[:4], channels), strict=True):
            assert [each.probabilities[name] for name in trained.classes] == pytest.approx(row.tolist(), abs=1e-6)
    assert trained(x).grad_fn is None


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_alone_is_enough(run, files, model, tmp_path):
    folder = run / "checkpoints" / model
    best = next(folder.glob("best.pt"), folder / "RGB/best.pt")
    alone = polychrome.load(shutil.copy(best, tmp_path / "renamed.pt"))
    whole = polychrome.load(run, model)
    assert (alone.name, alone.classes, alone.channels, alone.image_size) == (
        model,
        ("0", "1", "2"),
        ("R", "G", "B"),
        24,
    )
    assert alone.predict(files) == whole.predict(files)
    if model.endswith("+alone"):
        with pytest.raises(UserError, match=r"renamed.pt is the network for RGB, not for G"):
            alone.predict(files[0], "G")
    else:
        assert alone.predict(files, "G") == whole.predict(files, "G")


def test_weights_without_a_description_are_refused(run, tmp_path):
    from polychrome.engine.training import checkpoint

    checkpoint.save(tmp_path / "old.pt", {"name": "simple_cnn", "model": {}})
    for model in (None, "x"):
        with pytest.raises(UserError, match=r"old.pt has weights alone: give the folder of its run"):
            polychrome.load(tmp_path / "old.pt", model=model)
    with pytest.raises(UserError, match="the run has no model 'x'"):
        polychrome.load(run, "x")


@pytest.mark.parametrize("place", ["run", "checkpoint"])
def test_a_network_that_was_trained_on_all_channels_is_shown_the_nearest_ones(run, files, place, tmp_path):
    """The stripes are gray: a channel that is filled in with another is as if it were there."""
    best = next(run.glob("checkpoints/simple_cnn/best.pt"))
    source = run if place == "run" else shutil.copy(best, tmp_path)
    bare, filled = polychrome.load(source, "simple_cnn" if place == "run" else None), "simple_cnn+any_channels"
    model = polychrome.load(source, filled)
    assert model.name == filled
    assert model.predict(files) == bare.predict(files)
    gray = torch.rand(4, 1, 24, 24).expand(-1, 3, -1, -1)
    torch.testing.assert_close(model(gray, "G"), bare(gray), atol=1e-5, rtol=1e-5)
    assert (bare(gray, "G") - bare(gray)).abs().max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.predict(files, "G")
    wanted = [model.classes[row] for row in model(model.preprocess(files), "G").argmax(1)]
    assert [each.name for each in found] == wanted
    pixels = np.asarray(Image.open(files[0]).convert("RGB"))
    zeros = "without R, B: simple_cnn is shown zeros in place of absent channels, model simple_cnn.any_channels the nea"
    for images in (files[0], files, pixels):
        with pytest.warns(UserWarning, match=zeros):
            bare.predict(images, "G")


@pytest.mark.parametrize("model", ["prism4_small", "pool_attention_cnn+alone", "x", "simple_cnn+any_channels"])
def test_only_a_network_that_is_shown_zeros_is_filled_in(run, model):
    with pytest.raises(UserError, match=rf"the run has no model '{re.escape(model)}\+any_channels'; it trained "):
        polychrome.load(run, f"{model}+any_channels")


def test_a_file_that_cannot_be_read_is_a_prediction_with_its_reason(run, files, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.jpg", "c.jpg"):
        shutil.copy(files[0], folder / name)
    (folder / "a.jpg").write_bytes(b"\xff\xd8 cut off")
    (folder / "notes.txt").write_text("no image")
    trained = polychrome.load(run, "simple_cnn")
    bad, first, second = trained.predict(folder)
    assert [Path(each.path).name for each in (bad, first, second)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert (bad.name, bad.probability, bad.probabilities) == (None, None, {})
    assert bad.reason
    assert first.probabilities == second.probabilities
    assert first.probabilities == pytest.approx(trained.predict(files[0]).probabilities, abs=1e-6)
    with pytest.raises(UserError, match=r"a\.jpg: "):
        trained.predict(folder / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: "):
        trained.preprocess(folder)
    with pytest.raises(UserError, match=r"nowhere\.jpg: missing file"):
        trained.predict("nowhere.jpg")


def test_a_file_given_twice_is_predicted_twice_and_patterns_and_folders_mix(run, files, stripes):
    trained = polychrome.load(run, "simple_cnn")
    one = trained.predict(files[0])
    first, _, last = trained.predict([files[0], files[1], files[0]])
    assert first == last
    assert (first.path, first.name) == (one.path, one.name)
    assert first.probability == pytest.approx(one.probability, abs=1e-6)
    found = trained.predict([str(stripes / "images/test ?.jpg"), files[0]])
    assert [Path(each.path).name for each in found] == [f"test {number}.jpg" for number in [*range(10), 0]]
    assert len(trained.predict(stripes)) == 72 + 18 + 18
    with pytest.raises(UserError, match=r"x\*\.jpg: no file has such a name"):
        trained.predict(["x*.jpg"])


def test_links_to_one_file_are_each_predicted_and_nothing_gives_nothing(run, files, tmp_path):
    trained = polychrome.load(run, "simple_cnn")
    links = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for link in links:
        link.symlink_to(files[0])
    first, second = trained.predict(links)
    assert [first.path, second.path] == list(map(str, links))
    assert first.probabilities == second.probabilities
    assert trained.predict([]) == []


def test_images_in_tar_shards_are_predicted(run, files, tmp_path):
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for file in files[:3]:
            tar.add(file, file.name)
    trained = polychrome.load(run, "simple_cnn")
    found = trained.predict(tmp_path)
    assert [Path(each.path).name for each in found] == ["test 0.jpg", "test 1.jpg", "test 2.jpg"]
    assert [each.name for each in found] == [each.name for each in trained.predict(files[:3])]


def test_measured_values_are_predicted_as_their_files_are(tmp_path):
    data = write_stacks(tmp_path / "data", 4, dtype=np.float32)
    start = ["task1", "--data", str(data), "--out", str(tmp_path), "--name", "x", *SMALL]
    assert main([*start, "--models", "prism4_small,baseline_cnn+alone"]) == 0
    trained = polychrome.load(tmp_path / "task1/x", "prism4_small")
    file = sorted((data / "stacks").glob("test_*.npy"))[0]
    values = np.load(file)
    assert trained.dtype == str(values.dtype) == "float32"
    wanted = trained.predict(file).probabilities
    assert trained.predict(values).probabilities == pytest.approx(wanted, abs=1e-6)
    assert trained.predict(torch.from_numpy(values).permute(2, 0, 1)).probabilities == pytest.approx(wanted, abs=1e-6)
    first, *_, last = trained.channels
    wanted = trained.predict(file, f"{last}+{first}").probabilities
    given = trained.predict(values[..., [3, 0]], f"{last}+{first}")
    assert given.probabilities == pytest.approx(wanted, abs=1e-6)
    np.save(tmp_path / "part.npy", values[..., [3, 0]])  # a file that names no channels
    assert trained.predict(tmp_path / "part.npy", f"{last}+{first}").probabilities == pytest.approx(wanted, abs=1e-6)
    alone = polychrome.load(tmp_path / "task1/x", "baseline_cnn+alone")
    wanted = alone.predict(values, f"{first}+{last}").probabilities
    for given in (values[..., [3, 0]], tmp_path / "part.npy"):
        assert alone.predict(given, f"{last}+{first}").probabilities == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(UserError, match="ndarray has values of type uint8, the network was trained on fractions"):
        trained.predict(values.astype(np.uint8))
    values[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="ndarray has values that are not finite"):
        trained.predict(values)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((20, 20, 3), np.float32), "ndarray has values of type float32, the network was trained on uint8"),
        (torch.zeros(3, 20, 20), "Tensor has values of type float32, the network was trained on uint8"),
        (np.zeros((20, 20, 2), np.uint8), r"ndarray has 2 channels, wanted 3 \(R, G, B\), or channels= that names"),
        (np.zeros((20, 20, 4), np.uint8), "ndarray has 4 channels, wanted 3"),
        (np.zeros((3, 20, 20), np.uint8), "ndarray has 20 channels, wanted 3"),
        (np.zeros(20, np.uint8), r"ndarray has shape \[20\]: wanted an array"),
        (torch.zeros(20, 20, dtype=torch.uint8), r"Tensor has shape \[20, 20\]: wanted an array"),
        (7, "int is no image: wanted a path"),
        (Image.new("F", (20, 20)), "an image of mode F is no photo"),
    ],
)
def test_what_is_no_image_of_the_network_is_refused(run, image, said):
    with pytest.raises(UserError, match=said):
        polychrome.load(run, "simple_cnn").predict(image)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("channels", ["RB", "BR", "GR", "B"])
def test_arrays_of_some_channels_are_in_the_order_of_the_name(run, files, model, channels):
    """Also where the network has an order of its own, as one for a single combination has."""
    trained, pixels = polychrome.load(run, model), np.asarray(Image.open(files[0]))
    part = pixels[..., ["RGB".index(name) for name in channels]]
    wanted = trained.predict(files[0], channels).probabilities
    assert trained.predict(part, channels).probabilities == pytest.approx(wanted, abs=1e-6)
    assert polychrome.load(run, model, channels).predict(part).probabilities == pytest.approx(wanted, abs=1e-6)


def test_all_channels_in_another_order_are_refused_as_nobody_can_tell_which_order_the_array_has(run, files):
    trained, pixels = polychrome.load(run, "prism4_small"), np.asarray(Image.open(files[0]))
    with pytest.raises(UserError, match="ndarray has all channels, and channels='BGR' names them in another order"):
        trained.predict(pixels, "BGR")
    assert trained.predict(pixels, "RGB") == trained.predict(pixels)


def test_gray_photos_are_three_channels_unless_one_is_named(run, files):
    trained = polychrome.load(run, "prism4_small")
    pixels = np.asarray(Image.open(files[0]))
    gray = Image.open(files[0]).convert("L")
    found = trained.predict(gray).probabilities
    assert trained.predict(np.asarray(gray)).probabilities == pytest.approx(found, abs=1e-6)
    assert trained.predict(pixels[..., 1], "G").probabilities == pytest.approx(
        trained.predict(files[0], "G").probabilities, abs=1e-6
    )


def test_a_pillow_image_is_turned_as_its_file_is(run, tmp_path):
    trained = polychrome.load(run, "simple_cnn")
    pixels = np.random.default_rng(0).integers(0, 255, (20, 32, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x112] = 6
    for name in ("x.png", "x.tiff"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        image = Image.open(tmp_path / name)
        expected = trained.predict(tmp_path / name).probabilities
        assert trained.predict(image).probabilities == pytest.approx(expected, abs=1e-6)
        assert expected != pytest.approx(trained.predict(pixels).probabilities, abs=1e-6)


def test_a_pipe_gets_csv_and_nothing_else(run, files, capsys):
    assert main(["predict", str(run), *map(str, files), "nowhere.jpg", "--model", "simple_cnn"]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["path", "class", "probability", "reason", "0", "1", "2"]
    assert [row["path"] for row in rows] == [*map(str, files), "nowhere.jpg"]
    assert {Path(row["path"]).name: row["class"] for row in rows[:-1]} == of_run(run, "simple_cnn")
    for row in rows[:-1]:
        assert float(row["probability"]) == float(row[row["class"]]) == max(float(row[name]) for name in "012")
    assert (rows[-1]["class"], rows[-1]["reason"], rows[-1]["0"]) == ("", "missing file", "")
    assert "simple_cnn, channels RGB" in err
    assert "left out: nowhere.jpg: missing file" in err


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_an_output_file_has_every_prediction(run, stripes, tmp_path, capsys, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"new/out.{ending}"
    assert main(["predict", str(run), str(stripes / "images"), "--model", "simple_cnn", "--output", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"108 images in {path}" in err
    if ending == "csv":
        with open(path, newline="") as file:
            found = [(row["path"], row["class"], float(row["0"])) for row in csv.DictReader(file)]
    elif ending == "json":
        rows = json.loads(path.read_text())
        found = [(row["path"], row["class"], row["probabilities"]["0"]) for row in rows]
    else:
        from pyarrow.parquet import read_table

        rows = read_table(path).to_pylist()
        found = [(row["path"], row["class"], dict(row["probabilities"])["0"]) for row in rows]
    expected = polychrome.load(run, "simple_cnn").predict(stripes)
    assert [row[:2] for row in found] == [(each.path, each.name) for each in expected]
    assert [row[2] for row in found] == pytest.approx([each.probabilities["0"] for each in expected], abs=1e-5)


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_whole_names(monkeypatch, width):
    names = [f"photograph_number_{number}_of_the_long_summer_holidays_by_the_sea.jpg" for number in range(3)]
    shares = {"golden retriever": 0.93, "labrador": 0.05, "wolf": 0.02}
    found = [Prediction("golden retriever", 0.93, shares, f"/data/photos/{name}") for name in names]
    found.append(Prediction(None, None, path="/data/photos/sub/bad.jpg", reason="damaged: cut off"))
    shown = Console(width=width, file=io.StringIO())
    monkeypatch.setattr(console, "console", shown)
    printed.show(as_table("prism4, channels RGB", found, 3))
    text = shown.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "prism4, channels RGB, images of /data/photos" in text
    rest = text.split("───")[-1]
    column = rest.splitlines()[1].index("golden")
    assert "".join(line[:column].strip() for line in rest.splitlines()[1:]) == "".join([*names, "sub/bad.jpg"])
    assert text.count("golden retriever 93.0%") == text.count("labrador 5.0%, wolf 2.0%") == 3
    assert "left out" in text
    assert "damaged: cut off" in text


@pytest.mark.parametrize(
    ("paths", "names", "folder"),
    [
        (["a.jpg", "/x/b.jpg"], ["a.jpg", "/x/b.jpg"], ""),
        (["a.jpg", "sub/b.jpg"], ["a.jpg", "sub/b.jpg"], ""),
        (["/x/y/a.jpg", "/x/b.jpg"], ["y/a.jpg", "b.jpg"], ", images of /x"),
        (["s/a.jpg"], ["a.jpg"], ", images of s"),
    ],
)
@pytest.mark.parametrize("top", [1, 3])
def test_paths_are_shown_from_the_folder_that_all_lie_in(paths, names, folder, top):
    table = as_table("x", [Prediction("a", 1.0, {"a": 1.0, "b": 0.0}, path) for path in paths], top)
    assert [row[0] for row in table.rows] == names
    assert table.title == f"x{folder}"
    assert len(table.columns) == (2 if top == 1 else 3)


def test_a_terminal_gets_the_table(run, files, monkeypatch):
    shown = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr(console, "console", shown)
    assert main(["predict", str(run), *map(str, files[:5]), "--model", "simple_cnn", "--top", "2"]) == 0
    text = shown.file.getvalue().split("simple_cnn, channels RGB")[1]
    assert text.count("test ") == 5
    assert text.count("%") == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": 3}, "source must be a path or a pretrained network's name, got int"),
        ({"source": "prism4_small-shapes", "workers": 0}, "workers must be an int of at least 1, got 0"),
        ({"source": "prism4_small-shapes", "workers": 1.5}, "workers must be an int of at least 1, got 1.5"),
    ],
)
def test_arguments_of_another_type_are_named(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        polychrome.load(**arguments)


def test_wrong_use_is_told_in_a_line(run, files, tmp_path, monkeypatch, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8")
    monkeypatch.chdir(tmp_path)
    Path("-x.jpg").write_bytes(b"")
    for arguments, said in (
        ([str(files[0]), "--output", "x.txt"], "--output x.txt: the name must end in .csv, .json, .parquet"),
        ([str(bad)], "bad.jpg: "),
        ([str(bad), "nowhere.png"], "(and none of the other 1)"),
        ([str(files[0]), "--channels", "all"], "an image has one combination of channels, not 'all'"),
        ([str(tmp_path / "*.webp")], "no file has such a name"),
        (["-x.jpg"], " For the file of that name: ./-x.jpg"),
    ):
        assert main(["predict", str(run), *arguments]) == 2
        assert said in capsys.readouterr().err


def test_an_image_without_finite_logits_has_a_reason_and_no_class():
    trained = polychrome.load("prism4_small-shapes")
    pixels = np.zeros((40, 40, 3), np.uint8)
    assert trained.predict(pixels).name in trained.classes
    with torch.no_grad():
        list(trained.network.parameters())[-1][0] = float("nan")
    for each in trained.predict([pixels, torch.zeros(3, 40, 40, dtype=torch.uint8)]):
        assert (each.name, each.probability, dict(each.probabilities)) == (None, None, {})
        assert each.reason.startswith("the network's logits are not finite")
    with pytest.raises(UserError, match="ndarray: the network's logits are not finite"):
        trained.predict(pixels)


def test_files_without_finite_logits_are_rows_with_a_reason(tmp_path):
    trained = polychrome.load("prism4_small-shapes")
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file, value in zip(files, (0, 200), strict=True):
        Image.new("RGB", (40, 40), (value, value, value)).save(file)
    trained.network.forward = partial(_nan_for_bright, trained.network.forward)
    good, bad = trained.predict(files)
    assert good.name in trained.classes
    assert (bad.name, bad.probability, dict(bad.probabilities)) == (None, None, {})
    with pytest.raises(UserError, match=r"b\.png: the network's logits are not finite"):
        trained.predict(files[1])
    rows = list(csv.DictReader(io.StringIO(as_csv([good, bad], trained.classes))))
    assert [row["class"] for row in rows] == [good.name, ""]
    assert "not finite" in rows[1]["reason"]
    assert as_table("m", [good, bad], 3).rows[1][1] == "left out"


def _nan_for_bright(forward, x, *mask):
    bright = x.mean((1, 2, 3), keepdim=True)[:, 0, 0] > 0
    return forward(x, *mask).masked_fill(bright, float("nan"))
