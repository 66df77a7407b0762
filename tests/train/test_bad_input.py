"""What the user gets wrong: one line on stderr, exit status 2, nothing written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polychrome.train import preparation
from polychrome.train.run import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run a command line in an empty folder and return its one line on stderr; checks that nothing was written."""

    def run(*arguments, leaves=()):
        folder = tmp_path / "cwd"
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert main([str(argument) for argument in arguments]) == 2
        assert sorted(os.listdir(folder)) == sorted(leaves)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("error: ")
        return error

    return run


@pytest.fixture
def broken(stripes, tmp_path):
    """A copy of the data folder, to be broken."""
    return Path(shutil.copytree(stripes, tmp_path / "broken"))


def add_line(folder, line, to="train.txt"):
    with open(folder / to, "a", encoding="utf-8") as file:
        file.write(line + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task9"], "no task or command is named 'task9', did you mean 'task2'?"),
        (["frobnicate"], "no task or command is named 'frobnicate'; there are task1, task2, cifar100, transfer"),
        (["task1", "--models", "simple_cn"], "no model is called 'simple_cn'"),
        (["task1", "--models", ","], "names at least one item"),
        (["task1", "--models", "simple_cnn+dorp"], "no variant is named 'dorp'; did you mean drop?"),
        (["task1", "--recipe", "report_z"], "no such recipe; there are report_a"),
        (["task1", "--augmentations", "crop,flop"], "no augmentation is named 'flop'"),
        (["task1", "--augmentations", "crop,crop"], "augmentation crop is named 2 times"),
        (["task1", "--label-smoothing", "1.5"], "1.5 is not in the range"),
        (["task1", "--models", "simple_cnn,simple_cnn"], "--models names simple_cnn 2 times"),
        (["task1", "--channels", "RGX"], "channels 'RGX': no channel 'X'; the data has R, G, B"),
        (["task1", "--backend", "cv2"], "'--backend': 'cv2' is not one of"),
        (["task1", "--progressive", "0"], "0.0 is not in the range 0<x<=1"),
        (["task1", "--seeds", "0"], "0 is not in the range 1<=x<=1000"),
        (
            ["task1", "--channel-sampling", "shuffle", "--consistency", "1"],
            "no image is shown with all channels in order",
        ),
        (
            ["task1", "--recipe", "strong", "--epochs", "1", "--data", "missing"],
            "--schedule linear, --warmup 2: warmup must be at least 0 and under epochs=1",
        ),
        (["task1", "--epochs", "3", "--warmup", "3", "--schedule", "plateau"], "must be at least 0 and under epochs=3"),
        (["task1", "--batch-size", "0"], "'--batch-size': 0 is not in the range x>=1"),
        (["task1", "--epochs", "many"], "'--epochs': 'many' is not a valid integer"),
        (["task1", "--channels", "RG,RG"], "channels 'RG' are named 2 times"),
        (["task1", "--lr", "nan"], "nan is not a finite number"),
        (["task1", "--seed", str(2**64)], "is not in the range"),
        (["task1", "--data", ""], "'--data': must not be empty"),
        (["task1", "--data", "~no user/x"], "~no user/x: no home folder is known"),
        (["task1", "--workers", "1000000000"], "1000000000 is not in the range 1<=x<=1024"),
        (["scan", ".", "--workers", "1000000000"], "1000000000 is not in the range 1<=x<=1024"),
        (["task1", "--seeds", "1000000000"], "is not in the range 1<=x<=1000"),
        (["task1", "--num-classes", "1000000000"], "is not in the range 2<=x<=1000000"),
        (["task1", "--label-smoothing", "1"], "1.0 is not in the range 0<=x<1"),
        (["task1", "--mixup", "1e-300"], "1e-300 is too small: wanted 0 or at least 0.01"),
        (["task1", "--cutmix", "1e300"], "1e+300 is not in the range 0<=x<=1000"),
        (
            ["task2", "--models", "resnet34", "--image-size", "32", "--batch-size", "1", "--epochs", "1"],
            "--batch-size 1: resnet34 cannot be trained on single images: Expected more than 1 value per channel",
        ),
        (["task1", "--lr", "0"], "'--lr': 0.0 is not in the range x>0"),
        (["task1", "--data", "missing"], "no data folder at"),
        (["task1", "--config", "missing.toml"], "cannot read missing.toml: No such file or directory"),
        (["task1", "--resume", "nowhere"], "nowhere: no such run folder"),
        (["task1", "--frobnicate"], "No such option"),
        (["evaluate", "nowhere"], "nowhere: no such run folder"),
        (["evaluate"], "Missing argument 'RUN'"),
        (["predict", "nowhere", "x.jpg"], "nowhere: no such run folder"),
        (["scan", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_arguments(fails, arguments, message):
    assert message in fails(*arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/train 0.jpg zero", "train.txt:73: label must be a whole number, got 'zero'"),
        ("images/train 0.jpg 3", "train.txt:73: label 3 is outside 0..2"),
        ("images/train 0.jpg -1", "train.txt:73: label -1 is outside 0..2"),
        ("images/train 0.jpg " + "9" * 5000, "train.txt:73: label must be a whole number"),
        ("images/../../outside.jpg 0", "train.txt:73: path leaves the data folder"),
        ("../outside.jpg 0", "train.txt:73: path leaves the data folder"),
        ("/etc/passwd 0", "train.txt:73: path must be relative"),
        ("images/\0.jpg 0", "train.txt:73: path has a null character"),
        ("images/train_0.jpg", "train.txt:73: wanted `path label`"),
    ],
)
def test_wrong_lines_of_a_list_file(fails, broken, line, message):
    (broken / "classes.txt").write_text("0\ta\n1\tb\n2\tc\n")
    add_line(broken, line)
    assert message in fails("task1", "--data", broken)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but there is no RANK, MASTER_ADDR, MASTER_PORT: start by torchrun"),
        (
            {"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
            "must be a number of processes",
        ),
    ],
    ids=["alone", "no number"],
)
def test_several_processes_that_cannot_find_each_other(fails, stripes, monkeypatch, environment, message):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if torch.cuda.is_available() and "RANK" in environment:
        monkeypatch.setenv("LOCAL_RANK", "0")
    assert message in fails("task1", "--data", stripes)


def test_empty_and_missing_lists(fails, broken):
    (broken / "val.txt").write_text("")
    assert "val.txt lists no images" in fails("task1", "--data", broken)
    (broken / "val.txt").unlink()
    (broken / "train.txt").unlink()
    assert "no train.txt in" in fails("task1", "--data", broken)


def test_an_empty_data_folder(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has neither train.txt, val.txt and test.txt nor" in fails("task1", "--data", tmp_path / "empty")


def test_a_single_class(fails, broken):
    for name in ("train", "val", "test"):
        (broken / f"{name}.txt").write_text(f"images/{name} 0.jpg 0\nimages/{name} 3.jpg 0\n")
    assert "has one class: wanted at least 2" in fails("task1", "--data", broken)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("split_seed = -1", "-1 is not in the range x>=0"),
        ("split_seed = true", "split_seed must be a whole number, got True"),
        ("workers = 1000000000", "1000000000 is not in the range 1<=x<=1024"),
        ("epochs = " + "9" * 5000, "is not valid TOML: "),
        ("a = " + "[" * 100_000, "is not valid TOML: "),
        ("[model.simple_cnn]\nmixup = 1e-300", "1e-300 is too small: wanted 0 or at least 0.01"),
    ],
)
@pytest.mark.parametrize("option", ["--config", "--recipe"])
def test_wrong_lines_of_a_file_of_settings(fails, tmp_path, option, line, message):
    file = tmp_path / "settings.toml"
    file.write_text(line if option == "--config" else "[task1]\n" + line.replace("[model.", "[task1.model."))
    assert message in fails("task1", option, file)


@pytest.mark.parametrize("option", ["--config", "--recipe"])
def test_a_file_of_settings_that_is_no_text(fails, tmp_path, option):
    (tmp_path / "settings.toml").write_bytes(b"\xff\xfe")
    assert "settings.toml is not valid TOML: 'utf-8' codec" in fails("task1", option, tmp_path / "settings.toml")


def test_without_a_home_folder_there_is_a_line(tmp_path):
    """As in a container whose user has no entry among the users."""
    if os.geteuid() != 0:
        pytest.skip("no right to take another user")
    program = "import os, polychrome.engine.machine.files as files; os.setuid(54321); files.cache_folder()"
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd="/",
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1].endswith(
        "UserError: no home folder is known to keep files in: set HOME, or XDG_CACHE_HOME"
    ), done.stderr


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 2
    assert "Commands:\n  task1" in capsys.readouterr().err


def test_strict_names_the_first_undecodable_file(fails, broken):
    (broken / "images/train 5.jpg").write_bytes(b"")
    assert "--strict: 1 files cannot be used; the first is images/train 5.jpg" in fails(
        "task1", "--data", broken, "--strict"
    )


def test_a_split_without_a_decodable_file(fails, broken):
    for path in broken.glob("images/val*"):
        path.write_bytes(b"")
    assert "no usable image in val of" in fails("task1", "--data", broken)


def test_a_training_split_of_one_image(fails, broken):
    first = (broken / "train.txt").read_text().splitlines()[0]
    (broken / "classes.txt").write_text("a\nb\nc\n")
    (broken / "train.txt").write_text(first)
    assert "has 1 usable images: training needs at least 2" in fails("task1", "--data", broken, "--num-classes", 3)


def test_images_too_small_for_the_model(fails, stripes):
    error = fails("task1", "--data", stripes, "--image-size", 8, "--models", "attention_cnn")
    assert "attention_cnn cannot take 8 px images; it needs at least 16 px: --image-size 16" in error
    error = fails("task1", "--data", stripes, "--image-size", 40, "--models", "simple_cnn,adaptive_channel_cnn")
    assert "adaptive_channel_cnn cannot take 40 px images; it needs at least 64 px" in error


def test_a_model_for_one_image_size_and_images_that_grow(fails, stripes):
    arguments = ["--models", "naive_cnn", "--image-size", "32", "--progressive", "0.5"]
    error = fails("task1", "--data", stripes, *arguments)
    assert "naive_cnn cannot take the 16 px images that --progressive 0.5 begins with; give it progressive = 1" in error


def test_more_images_held_out_than_half(fails, stripes):
    error = fails("task1", "--data", stripes, "--holdout", "40")
    assert "--holdout 40: 14 of 24 training images of class '0' in" in error


def test_weights_that_transfer_cannot_start_from(fails, stripes, tmp_path):
    import torch

    from polychrome import models

    torch.save(models.create("simple_cnn").state_dict(), tmp_path / "other.pt")
    start = ["transfer", "--data", stripes, "--image-size", 32, "--models"]
    assert "torchvision has no weights of attention_cnn: give --weights FILE" in fails(*start, "attention_cnn")
    error = fails(*start, "attention_cnn", "--weights", tmp_path / "other.pt")
    assert "other.pt: weights of another architecture: " in error
    assert " is missing; " in error
    error = fails(*start, "attention_cnn", "--weights", tmp_path / "gone.pt")
    assert "gone.pt cannot be read: No such file or directory" in error
    assert "only task transfer starts from weights" in fails(
        "task1", "--data", stripes, "--models", "simple_cnn+frozen", "--image-size", 32
    )


def test_cifar100_without_its_files_and_without_a_network(fails, monkeypatch):
    def offline(*_):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    error = fails("cifar100", "--epochs", 1)
    assert "CIFAR-100 could not be downloaded (no route to host)" in error
    assert "or give --data a folder with list files" in error


def test_an_output_folder_that_cannot_be_written(fails, stripes, tmp_path):
    (tmp_path / "file").write_text("")
    error = fails("task1", "--data", stripes, "--out", tmp_path / "file", "--image-size", 32)
    assert f"the output folder {tmp_path / 'file'} cannot be written" in error
    for name in ("../x", " ", "x "):
        assert "must be a plain folder name" in fails("task1", "--data", stripes, "--name", name, "--image-size", 32)


def test_a_path_that_no_settings_can_name_is_refused_before_the_training(fails, tmp_path):
    (tmp_path / "ph\udcff").mkdir()
    error = fails("task1", "--data", tmp_path / "ph\udcff")
    assert "its bytes are no UTF-8, and config.toml is text: rename it" in error
    assert "--name " in fails("task1", "--name", "a\udcff")


def test_the_last_of_several_seeds_has_to_be_a_seed(fails):
    assert "--seed 4294967295 --seeds 2: the last seed is above 4294967295" in fails(
        "task1", "--seed", 2**32 - 1, "--seeds", 2
    )


@pytest.mark.parametrize("arguments", [["--name", "mine"], ["--name", "a/b"], ["--out", "file"], ["--name", "x" * 300]])
@pytest.mark.parametrize("seeds", [[], ["--seeds", "2"]])
def test_a_folder_that_cannot_be_made_is_told_before_the_data_is_read(fails, tmp_path, monkeypatch, arguments, seeds):
    (tmp_path / "cwd/runs/task1/mine").mkdir(parents=True)
    (tmp_path / "cwd/file").write_text("")
    monkeypatch.setattr(preparation, "open_data", lambda *_: pytest.fail("read"))
    fails("task1", *arguments, *seeds, leaves=["file", "runs"])


def test_a_run_of_this_name_exists(fails, stripes, tmp_path):
    (tmp_path / "cwd/runs/task1/mine").mkdir(parents=True)
    error = fails("task1", "--data", stripes, "--name", "mine", "--image-size", 32, leaves=["runs"])
    assert "runs/task1/mine is there already" in error
    assert os.listdir(tmp_path / "cwd/runs/task1/mine") == []


def test_config_files(fails, tmp_path):
    config = tmp_path / "config.toml"
    for text, message in (
        ("epochs = ", "is not valid TOML"),
        ("epoch = 3", "no setting is named 'epoch', did you mean 'epochs'?"),
        ("epochs = 0", "0 is not in the range x>=1"),
        ('precision = "fp8"', "'fp8' is not one of"),
        ("models = 3", "models must be a list of names, got 3"),
        ("compile = 3", "compile must be true or false, got 3"),
        ("epochs = 2.7", "epochs must be a whole number, got 2.7"),
        ("lr = true", "lr must be a number, got True"),
        ("image-size = 32\nimage_size = 64", "image_size is set twice"),
    ):
        config.write_text(text)
        assert message in fails("task1", "--config", config)


def test_the_exit_status_and_the_one_line_reach_the_shell():
    result = subprocess.run(
        [sys.executable, "-m", "train.run", "task1", "--config", "/nowhere/at all"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "/nowhere/at all" in result.stderr
