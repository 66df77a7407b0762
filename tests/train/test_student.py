"""A student's way: a folder of photos, a training, classes for new photos as CSV, in Python and in ONNX."""

import csv

import numpy as np
import pytest
from PIL import Image

import polychrome
from polychrome.train.run import main

NAMES = ("cats", "dogs")


def photo(label, number):
    """Return a photo of a size of its own: spots, which are reddish for one class and bluish for the other."""
    generator = np.random.default_rng([label, number])
    spots = generator.integers(0, 180, (9, 9, 3)).astype(np.uint8)
    spots[..., 2 * label] += 75
    return Image.fromarray(spots).resize((60 + 7 * (number % 5), 50 + 9 * (number % 4)), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders of photos by class, and a folder of new ones, one of them cut off."""
    root = tmp_path_factory.mktemp("student")
    for label, name in enumerate(NAMES):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(30):
            photo(label, number).save(root / "photos" / name / f"{number}.jpg")
    (root / "new").mkdir()
    for number in range(8):
        photo(number % 2, 100 + number).save(root / "new" / f"{NAMES[number % 2]} {number}.png")
    (root / "new/cut off.jpg").write_bytes((root / "photos/cats/0.jpg").read_bytes()[:900])
    return root


@pytest.mark.slow
def test_from_a_folder_of_photos_to_classes_that_agree_on_the_command_line_in_python_and_in_onnx(
    photos, monkeypatch, capsys
):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(photos)
    start = ["task1", "--data", "photos", "--name", "mine", "--models", "simple_cnn", "--image-size", "32"]
    assert (
        main(
            [*start, "--epochs", "10", "--batch-size", "8", "--workers", "1", "--no-tensorboard", "--precision", "fp32"]
        )
        == 0
    )
    run = "runs/task1/mine"
    assert main(["predict", run, "new", "--output", "found.csv"]) == 0
    with open("found.csv", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 9
    bad = rows.pop("new/cut off.jpg")
    assert (bad["class"], bad["cats"]) == ("", "")
    assert bad["reason"]

    model = polychrome.load(run)
    assert model.classes == NAMES
    in_python = {each.path: each for each in model.predict("new") if each.reason is None}
    assert {path: row["class"] for path, row in rows.items()} == {path: each.name for path, each in in_python.items()}
    for path, row in rows.items():
        assert float(row["cats"]) == pytest.approx(in_python[path].probabilities["cats"], abs=1e-5)

    assert main(["export", run, "--format", "onnx", "--preprocessing", "--output", "mine.onnx"]) == 0
    session = onnxruntime.InferenceSession("mine.onnx")
    for path, each in in_python.items():
        pixels = np.asarray(Image.open(path).convert("RGB"))[None]
        (found,) = session.run(["probabilities"], {"pixels": pixels})
        assert NAMES[found[0].argmax()] == each.name
        assert dict(zip(NAMES, found[0].tolist(), strict=True)) == pytest.approx(each.probabilities, abs=5e-3)
    right = sum(path.startswith(f"new/{each.name}") for path, each in in_python.items())
    assert right >= 7  # of 8: it has learnt something
