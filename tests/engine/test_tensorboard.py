"""What a run writes for TensorBoard, read back with TensorBoard's own reader."""

import importlib.util
import io

import numpy as np
import pytest
import torch
from PIL import Image

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.batches import normalise
from polychrome.engine.history import EpochRow, TrainingHistory
from polychrome.engine.watch import tensorboard
from polychrome.engine.watch.tensorboard import TensorBoard, grid

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed"
)


def row(epoch, loss=1.0):
    return EpochRow("m", epoch, 0.1 / epoch, loss, 0.5, loss + 0.5, 0.25)


def read(folder):
    """Return TensorBoard's view of a folder: what `tensorboard --logdir` serves."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def series(folder, name):
    return [(event.step, pytest.approx(event.value)) for event in read(folder).Scalars(name)]


def hyperparameters(folder):
    """Return what the page HPARAMS shows as the settings of a folder's only run."""
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = read(folder).SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


@needs_tensorboard
def test_every_epoch_has_its_scalars(tmp_path):
    with TensorBoard(tmp_path / "tensorboard/m") as scalars:
        for epoch, idle in ((1, None), (2, 0.25)):
            scalars.epoch(row(epoch, loss=3.0 - epoch), images_per_second=100.0 * epoch, idle=idle)
    folder = tmp_path / "tensorboard/m"
    assert set(read(folder).Tags()["scalars"]) == {
        "loss/train", "loss/validation", "accuracy/train", "accuracy/validation", "learning rate", "images per second",
        "idle share",
    }  # fmt: skip
    assert series(folder, "loss/train") == [(1, 2.0), (2, 1.0)]
    assert series(folder, "loss/validation") == [(1, 2.5), (2, 1.5)]
    assert series(folder, "accuracy/train") == [(1, 0.5), (2, 0.5)]
    assert series(folder, "accuracy/validation") == [(1, 0.25), (2, 0.25)]
    assert series(folder, "learning rate") == [(1, 0.1), (2, 0.05)]
    assert series(folder, "images per second") == [(1, 100), (2, 200)]
    assert series(folder, "idle share") == [(2, 0.25)]


@needs_tensorboard
def test_an_epoch_is_on_disk_when_it_ends(tmp_path):
    scalars = TensorBoard(tmp_path)
    scalars.epoch(row(1), 100.0)
    assert series(tmp_path, "loss/train") == [(1, 1.0)]
    scalars.close()


@needs_tensorboard
def test_a_run_that_is_gone_on_with_shows_each_epoch_once(tmp_path):
    with TensorBoard(tmp_path) as scalars:
        for epoch in (1, 2, 3):
            scalars.epoch(row(epoch, loss=3.0), 100.0)
    # It was killed after it had written epoch 3 and before the checkpoint of that epoch.
    with TensorBoard(tmp_path, first_epoch=3) as scalars:
        for epoch in (3, 4):
            scalars.epoch(row(epoch, loss=2.0), 100.0)
    assert series(tmp_path, "loss/train") == [(1, 3.0), (2, 3.0), (3, 2.0), (4, 2.0)]


@needs_tensorboard
@pytest.mark.parametrize("before", [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5], [1, 3], [2, 3]])
@pytest.mark.parametrize("first", [1, 3, 4])
def test_a_folder_has_each_epoch_once_and_none_of_a_training_that_was_left(tmp_path, first, before):
    """Whatever the epochs that earlier processes wrote there, of which this training shares those before `first`."""
    with TensorBoard(tmp_path) as board:
        for epoch in before:
            board.epoch(row(epoch, loss=3.0 if epoch < first else 9.0), 100.0)
    for path in tmp_path.iterdir():  # written in an earlier second, by which files are ordered
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
    seen = TrainingHistory([row(epoch, loss=3.0) for epoch in range(1, first)], [100.0] * (first - 1))
    with TensorBoard(tmp_path, first_epoch=first) as board:
        for epoch in range(first, 6):
            seen.epochs.append(row(epoch, loss=2.0))
            seen.speeds.append(200.0)
            board.epochs(seen)
    wanted = [(epoch, 3.0 if epoch < first else 2.0) for epoch in range(1, 6)]
    assert series(tmp_path, "loss/train") == wanted
    assert [step for step, _ in series(tmp_path, "images per second")] == [1, 2, 3, 4, 5]


@needs_tensorboard
def test_the_first_batch_and_pictures_are_shown(tmp_path):
    pixels = torch.randint(0, 256, (20, 3, 8, 6), dtype=torch.uint8)
    Image.fromarray(np.full((5, 7, 3), 9, np.uint8)).save(tmp_path / "predictions.png")
    with TensorBoard(tmp_path / "m") as scalars:
        first = normalise(pixels)
        scalars.batch(first, RGB)
        first.zero_()  # a buffer that is used again
        scalars.batch(torch.zeros(20, 3, 8, 6), RGB)
        scalars.epoch(row(1), 100.0)
        scalars.epoch(row(2), 100.0)
        pictures = {"predictions": tmp_path / "predictions.png", "predictions of nothing": tmp_path / "missing.png"}
        scalars.result(2, {}, pictures)
    events = read(tmp_path / "m")
    assert set(events.Tags()["images"]) == {"training images", "predictions"}
    (shown,) = events.Images("training images")
    assert shown.step == 1
    picture = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert picture.shape == (4 * (8 + 2) + 2, 4 * (6 + 2) + 2, 3)
    assert np.array_equal(picture[2:10, 2:8], pixels[0].permute(1, 2, 0).numpy())
    assert np.array_equal(picture[32:40, 26:32], pixels[15].permute(1, 2, 0).numpy())
    (shown,) = events.Images("predictions")
    assert (shown.width, shown.height, shown.step) == (7, 5, 2)


def test_a_grid_of_other_values_is_stretched_to_what_can_be_seen():
    channels = Channels(("red", "nir"), (500.0, 900.0), (100.0, 300.0))
    stored = torch.linspace(0, 4000, 2 * 2 * 3 * 3).reshape(2, 2, 3, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (channels.mean, channels.std))
    picture = grid((stored - mean) / std, channels)
    assert picture.shape == (3 + 4, 2 * (3 + 2) + 2, 3)
    assert picture[2:5, 2:5].min() == 0
    assert picture[2:5, 2:5].max() == 255


@needs_tensorboard
def test_the_page_hparams_has_the_settings_and_the_figures(tmp_path):
    from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    folder, settings = tmp_path / "m", {"lr": 0.1, "optimizer": "adam", "epochs": 2, "flip_test": False}
    with TensorBoard(folder, settings=settings) as board:
        for epoch in (1, 2):
            board.epoch(row(epoch), 100.0)
        board.result(2, {"test accuracy/RGB": 0.75, "test accuracy/R": 0.5}, {})
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [folder, folder]  # no run within the run
    assert hyperparameters(folder) == settings
    assert series(folder, "test accuracy/RGB") == [(2, 0.75)]
    assert series(folder, "test accuracy/R") == [(2, 0.5)]
    assert series(folder, "loss/train") == [(1, 1.0), (2, 1.0)]
    content = read(folder).SummaryMetadata(SESSION_END_INFO_TAG).plugin_data.content
    assert HParamsPluginData.FromString(content).session_end_info.status == 1  # success


@needs_tensorboard
def test_a_training_that_goes_on_has_the_settings_and_the_figures_of_its_new_end_alone(tmp_path):
    for first, last, accuracy in ((1, 2, 0.5), (3, 3, 0.75), (4, 3, 0.75)):  # the last is tested again
        with TensorBoard(tmp_path, first, {"epochs": last}) as board:
            for epoch in range(first, last + 1):
                board.epoch(row(epoch), 100.0)
            board.result(last, {"test accuracy/RGB": accuracy}, {})
    assert hyperparameters(tmp_path) == {"epochs": 3}
    assert series(tmp_path, "test accuracy/RGB") == [(3, 0.75)]
    assert series(tmp_path, "loss/train") == [(1, 1.0), (2, 1.0), (3, 1.0)]


@needs_tensorboard
def test_a_folder_that_cannot_be_written_does_not_end_the_training(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file where a folder is wanted")
    with TensorBoard(tmp_path / "tensorboard/m") as scalars:
        scalars.batch(torch.zeros(2, 3, 4, 4), RGB)
        for epoch in (1, 2):
            scalars.epoch(row(epoch), 100.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"no more TensorBoard scalars: {tmp_path / 'tensorboard/m'} cannot be written (")


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    tensorboard._is_installed.cache_clear()
    for model in ("a", "b"):
        with TensorBoard(tmp_path / model) as scalars:
            scalars.epoch(row(1), 100.0)
    tensorboard._is_installed.cache_clear()
    assert capsys.readouterr().out.splitlines() == ["no TensorBoard scalars: pip install tensorboard"]
    assert list(tmp_path.iterdir()) == []
