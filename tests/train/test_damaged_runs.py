"""Damaged files of a run: named, and the run goes on from what is whole; a bad run decides for no other."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from polychrome.engine.training import checkpoint
from polychrome.train.run import main
from tests.engine.test_integrity import flipped, zeroed
from tests.train import runner
from tests.train.test_killed_runs import ARGUMENTS, assert_equal_runs

TWO = [*ARGUMENTS, "--channels", "RGB,G"]
TWO[TWO.index("pool_attention_cnn")] = "pool_attention_cnn,simple_cnn"


@pytest.fixture(scope="module")
def unbroken(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert main(["task1", "--data", str(stripes), "--out", str(out), "--name", "a", *TWO]) == 0
    return out / "task1/a"


@pytest.fixture
def begun(stripes, tmp_path_factory, tmp_path):
    """A run whose models have two of their three epochs."""
    shared = tmp_path_factory.getbasetemp() / "begun two"
    if not shared.exists():
        start = ["--data", str(stripes), "--out", str(shared), "--name", "a", *TWO]
        start[start.index("--epochs") + 1] = "2"
        assert main(["task1", *start]) == 0
    run = Path(shutil.copytree(shared / "task1/a", tmp_path / "task1/a"))
    (run / "report.html").unlink()
    return run


def go_on(run, *arguments):
    return main(["task1", "--out", str(run.parents[1]), "--resume", "auto", "--epochs", "3", *arguments])


CONTENTS = ["", "models = 3", "\0\0", "epochs = " + "9" * 5000, "a = " + "[" * 5000, None]
# The usual run has each content, in the file that is likeliest to choke on it.
USUAL = {"config.toml": CONTENTS[3:5], "results.json": [CONTENTS[2], None], "history.csv": CONTENTS[:2]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param(name, content, marks=() if content in usual else pytest.mark.slow)
        for name, usual in USUAL.items()
        for content in CONTENTS
    ],
)
def test_a_run_goes_on_where_a_file_of_its_folder_is_damaged_or_gone(begun, unbroken, capsys, name, content):
    if content is None:
        (begun / name).unlink()
    else:
        (begun / name).write_text(content)
    assert go_on(begun) == 0
    assert_equal_runs(begun, unbroken)
    assert runner.results(begun)["models"].keys() == {"pool_attention_cnn", "simple_cnn"}
    said = capsys.readouterr().out
    if name != "history.csv":
        assert "written again from a checkpoint" in said
        assert name in said


@pytest.mark.parametrize(
    "content",
    [
        "model,epoch\nsimple_cnn,1\n",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("model\n\xff", "\xff", "a,b\n" + "x" * 200_000)),
    ],
)
def test_a_damaged_history_is_told_and_made_again(begun, unbroken, capsys, content):
    (begun / "history.csv").write_bytes(content.encode("latin-1"))
    assert go_on(begun) == 0
    assert_equal_runs(begun, unbroken)
    assert "history.csv is damaged" in capsys.readouterr().out


def test_settings_that_are_others_than_at_the_last_checkpoint_are_told(begun, capsys):
    """As where a part of the file is gone, or a number in it is another."""
    text = (begun / "config.toml").read_text()
    (begun / "config.toml").write_text(text.replace("seed = 0\n", "").replace("lr = 0.001", "lr = 0.003"))
    assert go_on(begun) == 0
    assert "config.toml has changed since the last checkpoint: lr 0.001 is now 0.003" in capsys.readouterr().out


def test_every_file_but_the_checkpoints_can_be_damaged_at_once(begun, unbroken):
    for path in begun.rglob("*"):
        if path.is_file() and path.suffix != ".pt":
            path.write_bytes(b"\xff\xfe{")
    assert go_on(begun) == 0
    assert_equal_runs(begun, unbroken)


def test_a_run_of_several_seeds_goes_on_where_its_files_are_damaged(stripes, tmp_path, capsys):
    start = ["task1", "--data", str(stripes), "--out", str(tmp_path), "--name", "a", *ARGUMENTS, "--seeds", "2"]
    start[start.index("--epochs") + 1] = "1"
    assert main(start) == 0
    run = tmp_path / "task1/a"
    before = {name: (run / name).read_bytes() for name in ("table.csv", "config.toml")}
    for path in (run, run / "seeds/0", run / "seeds/1"):
        for name in ("config.toml", "results.json", "history.csv"):
            (path / name).write_text("{")
        (path / "report.html").unlink()
    assert main(["task1", "--out", str(tmp_path), "--resume", "auto"]) == 0
    assert (run / "config.toml").read_bytes() == before["config.toml"]
    rows = [line.rpartition(",")[0] for line in before["table.csv"].decode().splitlines()]  # without the time
    assert [line.rpartition(",")[0] for line in (run / "table.csv").read_text().splitlines()] == rows


def test_a_flipped_bit_in_the_results_is_noticed_before_they_are_used(unbroken, stripes, tmp_path, capsys):
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    whole, rng = (run / "results.json").read_bytes(), random.Random(0)
    wanted = json.loads(whole)
    image = str(stripes / "images/test 0.jpg")
    for number in range(60):
        damaged = (zeroed if number % 6 == 0 else flipped)(whole, rng)
        (run / "results.json").write_bytes(damaged)
        status = main(["predict", str(run), image])
        error = capsys.readouterr().err
        if status == 0:  # such as a space that became another blank
            assert json.loads(damaged) == wanted
        else:
            assert (status, error.count("\n")) == (2, 1)
            assert "results.json is damaged" in error


@pytest.mark.parametrize("change", ["image_size = 24", "eval_crop = 0.5", 'precision = "bf16"'])
@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_settings_that_would_change_the_figures_are_compared_with_the_checkpoint(
    unbroken, stripes, tmp_path, capsys, command, change
):
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    name = change.partition(" ")[0]
    text = re.sub(rf"(?m)^{name} = .*$", change, (run / "config.toml").read_text())
    (run / "config.toml").write_text(text)
    more = {"evaluate": [], "predict": [str(stripes / "images/test 0.jpg")], "export": ["--format", "safetensors"]}
    assert main([command, str(run), *more[command]]) == 2
    assert f"config.toml is damaged: {name} is " in capsys.readouterr().err


def test_auto_passes_over_runs_that_cannot_be_read_and_says_which(begun, unbroken, tmp_path, capsys):
    for name, content in {"x": "{", "y": "\xff", "z": '{"task": "task1"}'}.items():
        bad = tmp_path / "task1" / name
        bad.mkdir()
        (bad / "config.toml").write_text(content, encoding="latin-1")
        (bad / "results.json").write_text(content, encoding="latin-1")
    (tmp_path / "task1/w").mkdir()
    (tmp_path / "task1/w/results.json").mkdir()
    assert go_on(begun, "--name", "a") == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in "wxyz":
        assert f"{tmp_path / 'task1' / name} is passed over: " in said
    assert f"going on with {begun}" in said
    assert_equal_runs(begun, unbroken)


@pytest.mark.parametrize("table", ["", "model\nx\n", "\xff\xfe", "model,split\n\0,\n" * 3])
def test_a_damaged_table_does_not_end_an_evaluation(unbroken, tmp_path, table):
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    (run / "table.csv").write_bytes(table.encode("latin-1"))
    assert main(["evaluate", str(run), "--channels", "RGB"]) == 0


@pytest.mark.parametrize(
    ("name", "damage", "fault"),
    [
        ("last.pt", flipped, "its checksum is wrong"),
        ("best.pt", flipped, "its checksum is wrong"),
        ("best.pt", lambda content, rng: content[: rng.randrange(4, len(content))], "its end is missing"),
        ("best.pt", lambda content, rng: b"", "its end is missing"),
        ("best.pt", None, None),
    ],
)
def test_damaged_or_lost_weights_of_a_finished_model_are_made_again_where_they_can(
    unbroken, tmp_path, capsys, name, damage, fault
):
    run = Path(shutil.copytree(unbroken, tmp_path / "task1/a"))
    path = run / "checkpoints/simple_cnn" / name
    path.write_bytes(damage(path.read_bytes(), random.Random(1))) if damage else path.unlink()
    assert main(["task1", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    if name == "best.pt":
        how = f"damaged ({fault})" if damage else "gone"
        assert f"{path} is {how}: simple_cnn goes on from its other checkpoints" in said
    wanted = checkpoint.load(unbroken / "checkpoints/simple_cnn/best.pt")
    found = checkpoint.load(run / "checkpoints/simple_cnn/best.pt")
    assert found["epoch"] == wanted["epoch"]
    assert all(value.equal(wanted["model"][key]) for key, value in found["model"].items())
    assert (
        runner.results(run)["models"]["simple_cnn"]["test"] == runner.results(unbroken)["models"]["simple_cnn"]["test"]
    )
