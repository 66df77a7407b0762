"""What whole runs write for TensorBoard, MLflow and W&B is what their history.csv and results.json say."""

import importlib.util
import json
import os
import shutil
import signal
import time
import tomllib
from dataclasses import replace

import pytest

from polychrome.engine.history import TrainingHistory
from polychrome.engine.machine import hardware
from polychrome.engine.training.state import State
from polychrome.engine.training.trainer import Trainer
from polychrome.engine.watch import wandb
from polychrome.engine.watch.logger import InBackground, Training
from polychrome.train import messages
from polychrome.train.run import main
from polychrome.train.settings.config import Settings, described
from tests.engine.test_tensorboard import hyperparameters, needs_tensorboard, series
from tests.train import runner

mlflow = pytest.importorskip("mlflow", reason="the package mlflow-skinny is not installed")

MODELS = ("simple_cnn", "pool_attention_cnn")
SMALL = ["--image-size", "16", "--batch-size", "24", "--workers", "1", "--precision", "fp32", "--backend", "torch"]
SMALL += ["--no-plots"]
COLUMNS = {
    "loss/train": "train_loss",
    "loss/validation": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "val_accuracy",
    "learning rate": "lr",
}


def start(stripes, out, *more, models=MODELS, epochs=3):
    common = ["task1", "--data", str(stripes), "--out", str(out), "--models", ",".join(models), *SMALL]
    return main([*common, "--epochs", str(epochs), *more])


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    """A store of MLflow's on disk, which all runs of this file log to."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", folder.as_uri())
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield folder


@pytest.fixture(scope="module")
def unbroken(stripes, tmp_path_factory, store):
    out = tmp_path_factory.mktemp("runs")
    assert start(stripes, out, "--name", "a", "--logger", "mlflow") == 0
    return out / "task1/a"


def logged(run, task="task1"):
    """Return MLflow's runs of a run of ours by network."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(task).experiment_id
    found = client.search_runs([experiment], f"tags.`polychrome.run` = '{run}'")
    assert len({each.data.tags["polychrome.network"] for each in found}) == len(found)
    return {each.data.tags["polychrome.network"]: each for each in found}


def course(run, name):
    """Return steps and values of a metric of MLflow's, in the order in which they were logged."""
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient().get_metric_history(run.info.run_id, name)]


def assert_has_history(run, network, metrics):
    """Check that `metrics(name)` are the steps and values of a network's history."""
    rows = [row for row in runner.history(run) if row["model"] == network]
    for name, column in COLUMNS.items():
        assert metrics(name) == [(int(row["epoch"]), float(row[column])) for row in rows], name


def results_of(run, network):
    """Return the figures that a network's results have, by the names that loggers give them."""
    entry = runner.results(run)["models"][network]
    best = {f"result/validation {kind}": entry["val"][kind] for kind in ("loss", "accuracy")}
    return best | {f"test accuracy/{label}": row["accuracy"] for label, row in entry["test"].items()}


def test_each_model_is_a_run_of_mlflow_with_the_epochs_and_the_results(unbroken):
    found = logged("a")
    assert set(found) == set(MODELS)
    for network, run in found.items():
        assert run.info.run_name == f"a {network}"
        assert run.info.status == "FINISHED"
        assert_has_history(unbroken, network, lambda name, run=run: course(run, name))
        assert len(course(run, "images per second")) == 3
        figures = results_of(unbroken, network)
        assert len(figures) == 2 + 7
        assert {name: course(run, name) for name in figures} == {name: [(3, value)] for name, value in figures.items()}


def test_what_a_model_is_trained_with_is_a_parameter_of_its_run(unbroken):
    found = logged("a")["pool_attention_cnn"].data.params
    config = tomllib.loads((unbroken / "config.toml").read_text())
    for name in ("lr", "optimizer", "weight_decay", "batch_size", "epochs", "image_size", "seed", "precision"):
        assert found[name] == str(config[name]), name
    assert (found["model"], found["protocol"], found["task"]) == ("pool_attention_cnn", "subset", "task1")
    assert (found["channel_sampling"], found["augmentations"], found["data"]) == ("on", "crop,flip", "stripes")
    assert "/" not in "".join(found.values())  # no path of this machine


@needs_tensorboard
def test_tensorboards_pages_have_the_same_settings_and_results(unbroken):
    assert {path.name for path in (unbroken / "tensorboard").iterdir()} == set(MODELS)
    for network in MODELS:
        folder = unbroken / "tensorboard" / network
        shown = {name: str(value) for name, value in hyperparameters(folder).items()}
        wanted = logged("a")[network].data.params
        assert shown.keys() == wanted.keys()
        # TensorBoard knows no whole numbers and no truth.
        truth = {"True": 1.0, "False": 0.0}
        for name, value in wanted.items():
            assert shown[name] == value or float(shown[name]) == truth.get(value) or float(shown[name]) == float(value)
        for name, value in results_of(unbroken, network).items():
            assert series(folder, name) == [(3, value)]


@pytest.fixture
def killed(stripes, tmp_path, monkeypatch):
    """A function that returns a run that died in its third epoch, of which the checkpoint has the first alone."""
    steps, update, save = [0], Trainer._update, State.save_epoch

    def dying(self):
        steps[0] += 1
        if steps[0] == 8:
            raise KeyboardInterrupt
        update(self)

    def run(logger, close=InBackground.close):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_update", dying)
            patch.setattr(State, "save_epoch", lambda self, folder: self.position.epoch > 2 or save(self, folder))
            patch.setattr(InBackground, "close", close)
            begun = ("--name", "k", "--save-every", "0", "--logger", logger)
            assert start(stripes, tmp_path, *begun, models=MODELS[:1]) == 1
        return tmp_path / "task1/k"

    return run


def test_a_killed_run_goes_on_in_its_run_of_mlflow_with_each_epoch_once(unbroken, killed, tmp_path):
    def drained(self, failed=False):  # what was told is logged, and nothing says that the run has ended
        self._calls.put(None)
        self._thread.join()

    run = killed("mlflow", drained)
    before = logged("k")["simple_cnn"]
    assert [step for step, _ in course(before, "loss/train")] == [1, 2]  # the checkpoint has the first
    assert before.info.status == "RUNNING"
    (tmp_path / "moved").mkdir()
    run = shutil.move(run, tmp_path / "moved/k")
    assert main(["task1", "--resume", str(run)]) == 0
    after = logged("k")["simple_cnn"]
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert_has_history(run, "simple_cnn", lambda name: course(after, name))
    rows = [row for row in runner.history(unbroken) if row["model"] == "simple_cnn"]
    assert runner.history(run) == rows
    for name, value in results_of(unbroken, "simple_cnn").items():
        assert course(after, name) == [(3, value)]


def test_a_finished_run_that_goes_on_has_its_new_epochs_and_results_in_the_same_run(unbroken, tmp_path):
    run = tmp_path / "a"
    shutil.copytree(unbroken, run)
    before = logged("a")["simple_cnn"]
    more = ["--models", "simple_cnn", "--epochs", "4", "--lr", "1e-4"]
    assert main(["task1", "--resume", str(run), *more]) == 0
    after = logged("a")["simple_cnn"]
    assert after.info.run_id == before.info.run_id
    assert_has_history(run, "simple_cnn", lambda name: course(after, name))
    figures = results_of(run, "simple_cnn")
    assert {name: course(after, name)[-1] for name in figures} == {name: (4, value) for name, value in figures.items()}
    assert after.data.params == before.data.params  # which MLflow never changes
    assert {name: value for name, value in after.data.tags.items() if name.startswith("resumed")} == {
        "resumed with epochs": "4",
        "resumed with lr": "0.0001",
    }


@needs_tensorboard
@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize("saved", [0, 1])
def test_epochs_that_are_left_and_trained_otherwise_are_in_no_logger_among_the_new(
    stripes, tmp_path, monkeypatch, saved
):
    """A run that was stopped in its third epoch goes on after the last that was saved, with other batches."""
    steps, update, save = [0], Trainer._update, State.save_epoch

    def stopping(self):
        update(self)
        steps[0] += 1
        if steps[0] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    name = f"left {saved}"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", stopping)
        patch.setattr(State, "save_epoch", lambda self, folder: self.position.epoch > saved + 1 or save(self, folder))
        begun = ("--name", name, "--logger", "mlflow", "--channels", "RGB")
        assert start(stripes, tmp_path, *begun, models=MODELS[:1]) != 0
    run, before = tmp_path / "task1" / name, logged(name)["simple_cnn"]
    old = course(before, "loss/train")
    assert [epoch for epoch, _ in old] == [1, 2]
    mlflow.MlflowClient().set_tag(before.info.run_id, "polychrome.run", "left behind")
    for more in (["--batch-size", "36"], ["--epochs", "4"]):  # the second goes on in the run of the first
        # TensorBoard reads files in the order of their names: by the second, then by a count as text, 10 before 9
        time.sleep(1 - time.time() % 1)
        assert main(["task1", "--resume", str(run), *more]) == 0
        after = logged(name)["simple_cnn"]
        assert after.info.run_id != before.info.run_id
        assert_has_history(run, "simple_cnn", lambda name, after=after: course(after, name))
        rows = [(int(row["epoch"]), pytest.approx(float(row["train_loss"]))) for row in runner.history(run)]
        assert series(run / "tensorboard/simple_cnn", "loss/train") == rows
    assert course(before, "loss/train") == old
    assert course(after, "loss/train")[saved:2] != old[saved:]
    assert after.data.params["batch_size"] == "36"


@needs_tensorboard
def test_loggers_show_the_figures_of_the_last_test(stripes, tmp_path, monkeypatch):
    def best(history):
        """The first epoch whose weights are there has the weights to keep, where not the last has them."""
        return history.epochs[-1 if history.keep == "last" else history.lost] if history.epochs else None

    monkeypatch.setattr(TrainingHistory, "best", property(best))
    network, begun = MODELS[0], ("--name", "tested again", "--logger", "mlflow", "--channels", "RGB,G")
    assert start(stripes, tmp_path, *begun, models=[network]) == 0
    run = tmp_path / "task1/tested again"
    for more in (["--keep", "last"], ["--submission"], ["--keep", "loss"]):
        assert main(["task1", "--resume", str(run), *more]) == 0
        figures, found = results_of(run, network), logged("tested again")[network]
        assert {name: found.data.metrics[name] for name in figures} == figures
        for name, value in figures.items():
            assert series(run / "tensorboard" / network, name) == [(3, value)]
    # Once again where a test changed it, and not where it did not.
    assert len(course(found, "result/validation loss")) == 2
    assert all(len(course(found, name)) in (1, 2) for name in figures)


def test_a_new_run_of_the_same_name_is_another_run_of_mlflow(stripes, tmp_path):
    for folder in ("one", "two"):
        begun = ("--name", "same", "--logger", "mlflow", "--no-tensorboard", "--channels", "RGB")
        assert start(stripes, tmp_path / folder, *begun, models=MODELS[:1], epochs=1) == 0
        if folder == "one":
            (first,) = logged("same").values()
            mlflow.MlflowClient().set_tag(first.info.run_id, "polychrome.run", "first")
    (second,) = logged("same").values()
    assert second.info.run_id != first.info.run_id
    assert len(course(second, "loss/train")) == 1


def test_runs_of_a_name_that_begin_in_the_same_second_are_told_apart():
    training, runs = Training("task1", "same", "simple_cnn", "", {}), set()
    about = hardware.describe()
    for _ in range(20):
        runs.add(replace(training, begun=messages.beginning(about)["at"]).id)
        time.sleep(1e-3)
    assert len(runs) == 20


def test_a_run_whose_server_is_gone_says_so_once_and_trains(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    begun = ("--name", "g", "--logger", "mlflow", "--no-tensorboard", "--channels", "RGB")
    assert start(stripes, tmp_path, *begun, epochs=1) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "MLflow" in line]
    assert len(lines) == 1
    assert lines[0].startswith("nothing more is logged to MLflow, the training goes on: API request to ")
    assert list(runner.results(tmp_path / "task1/g")["models"]) == list(MODELS)


def test_each_seed_is_a_run_of_mlflow_of_the_same_run(stripes, tmp_path):
    begun = ("--name", "s", "--logger", "mlflow", "--no-tensorboard", "--channels", "RGB", "--seeds", "2")
    assert start(stripes, tmp_path, *begun, models=MODELS[:1], epochs=1) == 0
    found = logged("s")
    assert set(found) == {"simple_cnn seed 0", "simple_cnn seed 1"}
    for seed in (0, 1):
        run = found[f"simple_cnn seed {seed}"]
        assert run.data.params["seed"] == str(seed)
        assert_has_history(tmp_path / f"task1/s/seeds/{seed}", "simple_cnn", lambda name, run=run: course(run, name))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The folder of W&B's runs, which are not sent anywhere."""
    package = pytest.importorskip("wandb", reason="the package wandb is not installed")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield tmp_path / "wandb"
    package.teardown()


def whole(path):
    """Return the records of a `.wandb` file once the process of W&B that writes it has written the last."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(300):
        records = [Record.FromString(content) for content in wandb._records(path.read_bytes())]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(path)


def of_wandb(folder):
    """Return what W&B would send of each of its runs: records of the kinds run, config, history and summary."""
    found = {}
    for path in sorted(folder.glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        records = whole(path)
        about = next(record.run for record in records if record.HasField("run"))
        config = [item for each in records for item in (*each.run.config.update, *each.config.update)]
        summary = [item for record in records for item in record.summary.update]
        one = found.setdefault(about.run_id, {"name": about.display_name, "group": about.run_group, "parts": []})
        one["config"] = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in config}
        one["summary"] = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in summary}
        one["parts"].append(wandb.history(path))
    return list(found.values())


def test_each_model_is_a_run_of_wandb_in_the_group_of_the_run(stripes, tmp_path, offline):
    assert start(stripes, tmp_path, "--name", "w", "--logger", "wandb", "--no-tensorboard", epochs=2) == 0
    found = of_wandb(offline)
    assert [(run["name"], run["group"]) for run in found] == [(f"w {network}", "w") for network in MODELS]
    for network, run in zip(MODELS, found, strict=True):
        (rows,) = run["parts"]
        columns = {name: [(row["_step"], row[name]) for row in rows] for name in COLUMNS}
        assert_has_history(tmp_path / "task1/w", network, columns.__getitem__)
        figures = results_of(tmp_path / "task1/w", network)
        assert {name: run["summary"][name] for name in figures} == figures
        assert (run["config"]["lr"], run["config"]["model"], run["config"]["flip_test"]) == (0.001, network, False)


def test_a_killed_run_goes_on_in_its_run_of_wandb_with_each_epoch_once(killed, offline):
    run = killed("wandb")
    (before,) = of_wandb(offline)
    assert [[row["_step"] for row in rows] for rows in before["parts"]] == [[1, 2]]
    assert main(["task1", "--resume", str(run)]) == 0
    (after,) = of_wandb(offline)
    assert [[row["_step"] for row in rows] for rows in after["parts"]] == [[1, 2], [3]]
    rows = [row for part in after["parts"] for row in part]
    columns = {name: [(row["_step"], row[name]) for row in rows] for name in COLUMNS}
    assert_has_history(run, "simple_cnn", columns.__getitem__)


def test_wandb_that_is_switched_off_does_not_end_a_training(stripes, tmp_path, offline, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    begun = ("--name", "o", "--logger", "wandb", "--no-tensorboard", "--channels", "RGB")
    assert start(stripes, tmp_path, *begun, models=MODELS[:1], epochs=1) == 0
    assert "nothing more is logged" not in capsys.readouterr().out
    assert not offline.exists()


@pytest.mark.slow  # MLflow makes the tables of a new database for seconds
def test_the_database_that_mlflow_takes_by_default_holds_a_run(stripes, tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny alone keeps no database")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    monkeypatch.chdir(tmp_path)
    begun = ("--name", "d", "--logger", "mlflow", "--no-tensorboard", "--channels", "RGB")
    assert start(stripes, tmp_path, *begun, models=MODELS[:1], epochs=1) == 0
    assert (tmp_path / "mlflow.db").exists()
    run = logged("d")["simple_cnn"]
    assert_has_history(tmp_path / "task1/d", "simple_cnn", lambda name: course(run, name))
    figures = results_of(tmp_path / "task1/d", "simple_cnn")
    assert {name: course(run, name) for name in figures} == {name: [(1, value)] for name, value in figures.items()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mlfow", "no logger is named 'mlfow'; there are mlflow, wandb and none\n"),
        ("tensorboard,mlflow", "no logger is named 'tensorboard'; there are mlflow, wandb and none; TensorBoard is on"),
    ],
)
def test_a_logger_that_is_not_there_is_refused(given, said, tmp_path, capsys):
    assert main(["task1", "--out", str(tmp_path), "--logger", given]) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_can_be_asked_to_log_nowhere_more(unbroken, capsys):
    for flags, wanted in (((), ["mlflow"]), (("--logger", "none"), None), (("--logger", "wandb"), ["wandb"])):
        assert main(["task1", "--resume", str(unbroken), *flags, "--print-config"]) == 0
        assert tomllib.loads(capsys.readouterr().out).get("logger") == wanted


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    assert main(["task1", "--out", str(tmp_path), "--logger", "mlflow,wandb"]) == 2
    assert capsys.readouterr().err == "error: --logger wandb needs the package wandb: pip install wandb\n"
    assert list(tmp_path.iterdir()) == []


def test_what_loggers_show_of_settings_is_plain():
    settings = Settings(options={"small_stem": True, "widths": [8, 16]}, augmentations=(), data="/some/where/photos/")
    found = described(settings)
    assert {type(value) for value in found.values()} <= {str, int, float, bool}
    assert (found["data"], found["augmentations"]) == ("photos", "none")
    assert (found["options.small_stem"], found["options.widths"]) == (True, "[8, 16]")
