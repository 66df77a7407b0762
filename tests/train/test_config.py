import tomllib

import pytest

from polychrome.train.run import main
from polychrome.train.settings.config import Settings


def effective(capsys, *arguments):
    assert main([*arguments, "--print-config"]) == 0
    return tomllib.loads(capsys.readouterr().out)


def test_defaults_of_the_generated_set_and_of_real_data(capsys):
    generated = effective(capsys, "task1")
    assert (generated["image_size"], generated["models"]) == (64, ["simple_cnn", "pool_attention_cnn"])
    real = effective(capsys, "task2", "--data", "anywhere")
    assert (real["image_size"], real["epochs"], real["batch_size"], real["lr"]) == (256, 50, 64, 1e-3)
    assert real["models"] == ["resnet34", "attention_cnn"]


def test_flags_win_over_the_config_file_which_wins_over_defaults(capsys, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('epochs = 7\nimage-size = 40\nmodels = ["attention_cnn"]\nseed = 3\n')
    found = effective(capsys, "task1", "--config", str(config), "--seed", "9")
    assert (found["epochs"], found["image_size"], found["models"], found["seed"]) == (7, 40, ["attention_cnn"], 9)


def test_settings_survive_a_round_trip_through_toml(tmp_path):
    settings = Settings(data="a folder", models=("simple_cnn",), epochs=2, channels=("RG", "B"), compile=False)
    path = tmp_path / "config.toml"
    path.write_text(settings.to_toml())
    assert Settings.from_toml(path) == settings


@pytest.mark.parametrize("arguments", [["--help"], ["task1", "--help"]])
def test_help_imports_nothing_heavy(arguments, capsys, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from train.run import main; main(sys.argv[1:]);"
        "print(sorted({'torch', 'torchvision', 'nvidia', 'matplotlib', 'torchmetrics'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "--data" in result.stdout or "task1" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
