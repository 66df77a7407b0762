"""Random command lines and config files end with status 0, 1 or 2 and one line at most: no traceback, no hang."""

import json
import random
import re
import signal
from contextlib import contextmanager
from dataclasses import fields

import pytest

from polychrome.engine.training.hyperparameters import Number
from polychrome.train.run import main
from polychrome.train.settings.config import Settings
from tests.conftest import write_list_folder

PATIENCE = 60  # seconds that a run may take; whole ones take less than two

# Whatever takes long by what it means, or needs what is not there, in small numbers; the rest is drawn by its kind.
CHOSEN = {
    "epochs": [1, 2, 0, -1],
    "seeds": [1, 2, 0, 10**30],
    "image_size": [8, 16, 31, 32, 7, -8, 10**6, 10**12],
    "models": [
        *("simple_cnn", "pool_attention_cnn", "baseline_cnn", "naive_cnn", "simple_cnn+drop", "simple_cnn+cycle+he"),
        *("simple_cnn+x", "+", "simple_cnn+", "all+all", "", "nothing", "simple_cnn+alone", "pool_attention_cnn+few"),
    ],
    "channels": ["all", "RGB", "RG,B", "shuffled", "sensors", "sensor 2", "+", "R+G", "X", "", "GR"],
    "augmentations": ["all", "none", "crop", "crop,crop", "rotation,jitter,gamma,grayscale", "x", ""],
    "device": ["auto", "cpu", "cuda", "x"],
    "backend": ["auto", "torch", "synthetic", "x"],
    "compile": [False],
    "profile": [False, True],
    "weights": ["nothing.pt", "~nobody/x.pt", ""],
    "data": ["missing", "", "~no user/x", "\0", "/dev/null"],
    "out": ["runs", "a/b", "", "/dev/null", "~nobody"],
    "name": ["a", "..", "", "a/b", "x" * 300, "日"],
    "group_by": ["([0-9])", "(", "", "x*"],
    "channel_files": ["([a-z])", "[", ""],
    "num_classes": [2, 3, 1, 10**9],
}
NUMBERS = [0, 1, 2, 3, 7, -1, 10**9, 2**31, 2**63, 10**30, "x", "", True]
FLOATS = [0.0, 1e-300, 0.01, 0.3, 0.5, 0.999999, 1.0, 2.0, 1e9, 1e300, -1.0, "nan", "inf", "1e999", "x", ""]


def values(item):
    """Return values for a setting: good ones, and ones that nobody means."""
    kind = item.metadata["type"]
    if item.name in CHOSEN:
        return CHOSEN[item.name]
    if kind is bool:
        return [True, False, "x"]
    if isinstance(kind, Number):
        return NUMBERS if kind.kind is int else FLOATS
    return [*kind, "x", 3] if isinstance(kind, tuple) else ["x", "", 3]


def toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)


def drawn(rng, folder):
    """Return a random command line, some of whose settings are in a config file."""
    every = [item for item in fields(Settings) if "help" in item.metadata]
    arguments, lines = [], []
    for item in rng.sample(every, rng.randint(1, 4)):
        value = rng.choice(values(item))
        flag = (item.metadata["flag"] or "--" + item.name.replace("_", "-")).split("/")
        if rng.random() < 0.3:
            lines.append(f"{item.name} = {toml(value)}")
        elif isinstance(value, bool) and len(flag) == 2:
            arguments.append(flag[not value])
        else:
            arguments += [flag[0], str(value)]
    if rng.random() < 0.1:
        lines.append(
            rng.choice(["x = 1", "[model.simple_cnn]\nlr = 0", "a = " + "[" * 2000, "epochs = " + "9" * 5000, "]"])
        )
        lines.append(
            rng.choice(["split_seed = -1", "split_seed = 3", "sweep = 7", "options = {x = 1}", "sweep = true"])
        )
    if lines:
        (folder / "config.toml").write_text("\n".join(lines))
        arguments += ["--config", str(folder / "config.toml")]
    return arguments


class Hangs(BaseException):
    """Ends what takes too long, whatever it catches."""


@contextmanager
def at_most(seconds):
    def late(number, frame):
        raise Hangs

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_list_folder(tmp_path_factory.mktemp("few") / "few", (4, 2, 2))


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 320))])
def test_random_settings_end_in_a_line_or_a_run(few, tmp_path, monkeypatch, capsys, seed):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    small = ["--data", str(few), "--epochs", "1", "--image-size", "32", "--models", "simple_cnn", "--batch-size", "4"]
    task = rng.choice(["task1", "task1", "task2", "transfer", "cifar100"])
    arguments = [task, *small, "--precision", "fp32", "--no-tensorboard", *drawn(rng, tmp_path)]
    with at_most(PATIENCE):
        status = main(arguments)
    error = capsys.readouterr().err
    assert status in (0, 1, 2), arguments
    if status:
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, (arguments, error)
        assert len(error.splitlines()) == 1, (arguments, error)
        assert not re.search("Traceback|Error\\b.*Error\\b", error), (arguments, error)
    outside = {path.name for path in tmp_path.iterdir()} - {"runs", "config.toml", "a", "~nobody"}
    assert not outside, (arguments, outside)
