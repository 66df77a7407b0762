"""No name leaves its place, folders are checked at the start, and writers at once each leave whole files."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from polychrome.train.run import main
from tests.train import runner
from tests.train.test_killed_runs import ARGUMENTS

# As parts of the names of entries and of channels.
HOSTILE = ["/../../x", "..", ".", "/", "a/b", "../x", "\0", "x" * 300, "日" * 100, "\\", "", " ", "a\nb", "\x1b[31m"]


@pytest.fixture(scope="module")
def trained(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("places")
    start = ["--data", str(stripes), "--out", str(out), "--name", "a", *ARGUMENTS, "--epochs", "1", "--plots"]
    assert main(["task1", *start]) == 0
    return out / "task1/a"


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "runs/task1/a"))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def quoted(text):
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_an_entry_of_a_config_cannot_be_a_path(stripes, tmp_path, capsys, name):
    entry = f"simple_cnn+{name}"
    config = tmp_path / "config.toml"
    config.write_text(f"models = [{quoted(entry)}]\n[model.{quoted(entry)}]\nlr = 0.01\n", encoding="utf-8")
    out = tmp_path / "runs"
    assert main(["task1", "--data", str(stripes), "--out", str(out), "--config", str(config), "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert files(tmp_path) == ["config.toml"]


ANOTHERS = ["simple_cnn+/../../x", "../../x", "..", "", "x" * 300]
# The usual run has each command on one name, and each name once.
USUAL = dict(zip(ANOTHERS, ("export", "predict", "evaluate", "resume", "evaluate"), strict=True))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(command, name, marks=() if USUAL[name] == command else pytest.mark.slow)
        for command in ("export", "predict", "evaluate", "resume")
        for name in ANOTHERS
    ],
)
def test_an_entry_of_anothers_results_cannot_be_a_path(run, stripes, tmp_path, capsys, command, name):
    results = json.loads((run / "results.json").read_text())
    results["models"] = {name: next(iter(results["models"].values()))}
    del results["checksum"]
    (run / "results.json").write_text(json.dumps(results))
    # So that the model is known and its weights are where the name leads.
    shutil.copytree(run / "checkpoints/pool_attention_cnn", run / "checkpoints/simple_cnn+")
    before = files(tmp_path)
    commands = {
        "export": ["export", str(run), "--format", "safetensors"],
        "predict": ["predict", str(run), str(stripes / "images/test 0.jpg")],
        "evaluate": ["evaluate", str(run)],
        "resume": ["task1", "--resume", str(run), "--epochs", "2", "--no-plots"],
    }
    if command == "resume":  # goes on with the copy that its checkpoints have
        assert main(commands[command]) == 0
        assert "results.json is damaged" in capsys.readouterr().out
        assert set(files(tmp_path)) - set(before) <= {"runs/task1/a/checkpoints/pool_attention_cnn/previous.pt"}
    else:
        assert main(commands[command]) == 2
        assert "results.json is damaged" in capsys.readouterr().err
        assert files(tmp_path) == before


def test_a_combination_of_anothers_results_cannot_be_a_path(stripes, tmp_path, capsys):
    start = ["--data", str(stripes), "--out", str(tmp_path / "runs"), "--name", "a", *ARGUMENTS, "--epochs", "1"]
    start[start.index("pool_attention_cnn")] = "naive_cnn"
    assert main(["task1", *start, "--channels", "RG"]) == 0
    run = tmp_path / "runs/task1/a"
    results = json.loads((run / "results.json").read_text().replace('"RG"', '"../../../../x"'))
    del results["checksum"]
    (run / "results.json").write_text(json.dumps(results))
    assert main(["evaluate", str(run), "--channels", "RG"]) == 2
    assert "'../../../../x' cannot be the name of a file" in capsys.readouterr().err


def test_names_too_long_for_the_disk_are_told_before_training(tmp_path, capsys):
    noise, names = np.random.default_rng(0), [f"{number} {'reflectance ' * 8}" for number in range(2)]
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                np.save(folder / f"{number}.npy", noise.normal(size=(32, 32, 2)).astype(np.float32))
    (tmp_path / "data/channels.txt").write_text("\n".join(names))
    start = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "runs"), *ARGUMENTS, "--epochs", "1"]
    start[start.index("pool_attention_cnn")] = "naive_cnn"
    assert main(["task1", *start]) == 2
    assert "is too long for the name of a file: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    start[start.index("naive_cnn")] = "pool_attention_cnn"  # a single network, whose files have no channels in the name
    assert main(["task1", *start]) == 0


def test_a_folder_that_the_end_needs_is_checked_at_the_start(run, capsys):
    shutil.rmtree(run / "plots")
    (run / "plots").write_text("")
    before = (run / "history.csv").read_bytes()
    assert main(["task1", "--resume", str(run), "--epochs", "2"]) == 2
    assert "plots cannot be written: Not a directory" in capsys.readouterr().err
    assert (run / "history.csv").read_bytes() == before


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "train.run", *arguments],
        cwd=runner.ROOT,
        env=runner.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes):
    with ThreadPoolExecutor(len(processes)) as pool:
        said = list(pool.map(lambda process: "".join(process.communicate(timeout=120)), processes))
    return [process.returncode for process in processes], said


@pytest.mark.slow
def test_evaluations_while_a_run_goes_on_and_beside_each_other_are_whole(run):
    resumed = started("task1", "--resume", str(run), "--epochs", "4")
    codes, said = ended([started("evaluate", str(run)), started("evaluate", str(run)), resumed])
    assert codes == [0, 0, 0], said
    json.loads((run / "evaluation.json").read_text())
    assert runner.results(run)["models"]["pool_attention_cnn"]["epochs"] == 4
    assert not list(run.rglob("*.partial"))
    for picture in (run / "plots").glob("*.png"):
        Image.open(picture).verify()
    for chart in (run / "plots").glob("*.svg"):
        ElementTree.parse(chart)
    assert main(["evaluate", str(run)]) == 0
    assert (run / "evaluation.csv").read_text() == (run / "table.csv").read_text()


@pytest.mark.slow
def test_two_starts_at_once_have_a_run_each_and_two_of_one_name_a_single_one(stripes, tmp_path):
    start = ["task1", "--data", str(stripes), *ARGUMENTS, "--epochs", "1", "--out"]
    codes, said = ended([started(*start, str(tmp_path / "dated")) for _ in range(2)])
    assert codes == [0, 0], said
    assert len(os.listdir(tmp_path / "dated/task1")) == 2
    codes, said = ended([started(*start, str(tmp_path / "named"), "--name", "a") for _ in range(2)])
    assert sorted(codes) == [0, 2], said
    assert "is there already" in "".join(said)
    assert runner.results(tmp_path / "named/task1/a")["models"].keys() == {"pool_attention_cnn"}
