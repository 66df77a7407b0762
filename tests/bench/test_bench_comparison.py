"""The comparison at equal minutes: its table follows from predictions, and fresh images are read once."""

import lzma
import shutil
from dataclasses import replace

import pytest

from bench.studies import comparison, trials
from bench.studies.comparison import Training
from bench.studies.trials import Choice

RUN = Training(
    network="prism4",
    seed=0,
    lr=0.01,
    weight_decay=0.1,
    strength=0,
    epochs=70,
    images=8649,
    train_seconds=4000.0,
    seconds_per_image=0.005,
    params=2_684_018,
    macs=305_883_616,
    depth=4,
    depth_written_out=4,
    commit="0123456789ab",
    machine="C, python 3.11",
)
DEEP = replace(RUN, network="resnet34", epochs=30, params=21_310_322, macs=612_302_592, depth=33, depth_written_out=33)


def keep(results, network, seed, right, images=1000, splits=("val", "holdout", "test", "fresh")):
    """Write predictions of which the first `right` of `images` are right, with flips averaged all of them."""
    lines = ["split,image,label,RGB,RGB flipped"]
    for split in splits:
        lines += [f"{split},{number:04},1,{int(number < right)},1" for number in range(images)]
    path = comparison.predictions(network, seed, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(("\n".join(lines) + "\n").encode()))


def rows_of(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_follows_from_the_predictions(tmp_path):
    comparison.write([replace(RUN, seed=1), RUN, DEEP, replace(DEEP, seed=1)], tmp_path)
    for network, right in (("prism4", (500, 520)), ("resnet34", (400, 440))):
        for seed, count in enumerate(right):
            keep(tmp_path, network, seed, count)
    deep, shallow = rows_of(comparison.table(tmp_path))
    assert shallow["network"] == "`prism4`"
    assert shallow["fresh"].startswith("51.0 (")
    assert shallow["held-out"] == "51.0 ± 1.4"
    assert shallow["flip avg."] == "100.0"
    # 100 images for the one with equal seeds, 80 for the other: p of either is far below.
    assert shallow["less `resnet34`"].startswith("+9.0 (")
    assert shallow["less `resnet34`"].endswith("; p < 0.001)")
    assert deep["less `resnet34`"] == "-"
    assert (shallow["parameters"], shallow["depth"], shallow["seeds"]) == ("2,684,018", "4", "0 1")
    assert (shallow["epochs"], shallow["minutes"]) == ("70", f"{0.005 * 8649 * 70 / 60:.0f}")
    assert shallow["trained"] == f"{3 * 305_883_616 * 8649 * 70 / 1e15:.1f} P"
    assert "commit 0123456789ab, C, python 3.11" in comparison.table(tmp_path)


def test_a_lead_by_chance_is_not_told_as_one(tmp_path):
    comparison.write([RUN, DEEP], tmp_path)
    keep(tmp_path, "prism4", 0, 404)
    keep(tmp_path, "resnet34", 0, 400)
    _, shallow = rows_of(comparison.table(tmp_path))
    assert shallow["less `resnet34`"].startswith("+0.4 (")
    assert shallow["less `resnet34`"].endswith("; p 0.125)")  # 2 / 2**4


def test_without_fresh_images_the_held_out_ones_are_compared(tmp_path):
    comparison.write([RUN, DEEP], tmp_path)
    for network, right in (("prism4", 500), ("resnet34", 400)):
        keep(tmp_path, network, 0, right, splits=("val", "holdout", "test"))
    _, shallow = rows_of(comparison.table(tmp_path))
    assert "fresh" not in shallow
    assert shallow["less `resnet34`"].startswith("+10.0 (")


def test_gates_on_the_path_are_told_beside(tmp_path):
    comparison.write([replace(RUN, depth_written_out=7)], tmp_path)
    keep(tmp_path, "prism4", 0, 500)
    assert rows_of(comparison.table(tmp_path))[0]["depth"] == "4/7"


def test_rows_are_read_as_written(tmp_path):
    assert comparison.read(tmp_path) == []
    assert comparison.table(tmp_path) == "Not measured yet."
    comparison.write([RUN, DEEP], tmp_path)
    assert comparison.read(tmp_path) == [DEEP, RUN]


def test_fresh_images_are_read_once(tmp_path):
    keep(tmp_path, "prism4", 0, 500)
    with pytest.raises(ValueError, match="every training has been tested on the fresh images: they are read once"):
        comparison.test_on_fresh([RUN], tmp_path, tmp_path, tmp_path / "fresh.txt", tmp_path)


def test_images_of_a_split_are_not_fresh(tmp_path, stripes):
    keep(tmp_path, "prism4", 0, 500, splits=("val", "holdout", "test"))
    with pytest.raises(ValueError, match="18 fresh images are in a split of"):
        comparison.test_on_fresh([RUN], stripes, tmp_path, stripes / "val.txt", tmp_path)


def test_fresh_images_wait_for_every_contender(tmp_path, monkeypatch):
    comparison.write([replace(RUN, seed=seed) for seed in range(3)], tmp_path)
    monkeypatch.setattr(comparison, "test_on_fresh", lambda *_: pytest.fail("read"))
    start = ["--data", str(tmp_path), "--out", str(tmp_path), "--networks", "prism4", "--fresh", "fresh.txt"]
    with pytest.raises(ValueError, match=r"missing: \[\(0, 'resnet34'\), "):
        comparison.main(start, tmp_path)


@pytest.mark.slow
def test_a_network_is_trained_and_then_tested_on_images_it_has_never_seen(tmp_path, stripes, monkeypatch):
    monkeypatch.setattr(trials, "HELD_OUT", 12)
    monkeypatch.setattr(trials, "CONTENDERS", ("prism4_small",))
    data = shutil.copytree(stripes, tmp_path / "data")
    lines = (data / "test.txt").read_text().splitlines(keepends=True)
    (data / "test.txt").write_text("".join(lines[9:]))
    tried = trials.Trial("prism4_small", 1, *vars(Choice()).values(), 9, 60 * 0.05 / (60 * 3), 0.5, 0.5, 1.0, "a", "m")
    trials.write([tried], tmp_path)
    fresh = tmp_path / "fresh.txt"
    fresh.write_text("".join(lines[:9]))
    start = ["--data", str(data), "--out", str(tmp_path / "runs"), "--networks", "prism4_small"]
    start += ["--seeds", "1", "--minutes", "0.05"]
    assert comparison.main([*start, "--fresh", str(fresh)], tmp_path) == 0
    (row,) = comparison.read(tmp_path)
    assert (row.epochs, row.images, row.depth, row.depth_written_out) == (3, 60, 4, 4)
    path = [comparison.predictions("prism4_small", 0, tmp_path)]
    known, fresh_ones = (runs_right(path, split) for split in ("test", "fresh"))
    assert (len(known), len(fresh_ones)) == (9, 9)
    assert [f"{image} {int(image.split()[1][:-4]) % 3}\n" for image in fresh_ones] == lines[:9]
    with pytest.raises(ValueError, match="they are read once"):
        comparison.main([*start, "--fresh", str(fresh)], tmp_path)
    assert "`prism4_small`" in comparison.table(tmp_path)


def runs_right(path, split):
    """Return whether the prediction is right, by image of a split."""
    rows = [line for line in comparison._rows(path[0]) if line[0] == split]
    return {image: guess == label for _, image, label, guess, _ in rows}
