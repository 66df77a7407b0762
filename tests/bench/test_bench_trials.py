"""The trials that tune each contender: what is tried after what, on which images, and how a table of them is kept."""

import os
from dataclasses import asdict, replace

import pytest

from bench.studies import trials
from bench.studies.trials import Choice, Trial
from polychrome.engine.data.sets import division, listing
from polychrome.train import recipes
from polychrome.train.settings.config import OF_AN_ENTRY

ABOUT = {
    "epochs": 9,
    "seconds_per_image": 0.001,
    "flipped": 0.5,
    "train_seconds": 1199.5,
    "commit": "a",
    "machine": "m",
}


def trial(number, choice, accuracy, network="prism4"):
    return Trial(network, number, *asdict(choice).values(), accuracy=accuracy, **ABOUT)


def all_trials(accuracy):
    """Return a network's trials where a choice reaches `accuracy(choice)`."""
    done = []
    while (choice := trials.following(done)) is not None:
        done.append(trial(len(done) + 1, choice, accuracy(choice)))
    return done


def test_six_trials_go_from_rates_to_augmentation_to_decays():
    best = Choice(lr=0.02, weight_decay=0.3, strength=1)
    done = all_trials(lambda choice: sum(vars(choice)[name] == value for name, value in vars(best).items()))
    assert [found.choice for found in done] == [
        Choice(0.01),
        Choice(0.005),
        Choice(0.02),
        Choice(0.02, strength=1),
        Choice(0.02, 0.3, strength=1),
        Choice(0.02, 0.03, strength=1),
    ]
    assert trials.tuned("prism4", done) == best


def test_what_does_not_help_is_not_kept():
    done = all_trials(lambda choice: 1 - choice.strength - abs(choice.weight_decay - 0.1) - abs(choice.lr - 0.01))
    assert len(done) == 6
    assert trials.tuned("prism4", done) == Choice()
    assert done[-1].choice == Choice(weight_decay=0.03)


def test_every_setting_of_a_choice_is_one_of_a_training():
    assert {name for strength in trials.STRENGTHS for name in Choice(strength=strength).settings} <= OF_AN_ENTRY
    assert recipes.load("strong", "task2")["models"] == trials.CONTENDERS


def test_a_table_is_read_as_it_was_written_by_network_and_number(tmp_path):
    rows = [trial(2, Choice(0.005), 0.4), trial(1, Choice(), 0.1 + 0.2), trial(1, Choice(), 0.3, "resnet34")]
    trials.write(rows, tmp_path)
    assert trials.read(tmp_path) == [rows[2], rows[1], rows[0]]
    assert trials.read(tmp_path / "none") == []


@pytest.fixture
def small(monkeypatch, tmp_path, stripes):
    for name, value in {"HELD_OUT": 12, "DECIDING": 9, "PROBED": 24}.items():
        monkeypatch.setattr(trials, name, value)
    trials.make_folders(stripes, tmp_path)
    return tmp_path


def test_no_image_that_is_held_out_trains_or_decides(small, stripes):
    whole = division.hold_out(listing.read(stripes), 12)
    choices, probe = listing.read(small / "choices"), listing.read(small / "probe")
    parts = [set(choices.splits[name].paths) for name in ("train", "test")]
    assert [len(part) for part in parts] == [72 - 12 - 9, 9]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(whole.splits["train"].paths)
    assert choices.splits["val"].paths == whole.splits["val"].paths
    assert len(probe.splits["train"].paths) == 24
    assert set(probe.splits["train"].paths) <= parts[0]
    assert choices.class_names == whole.class_names


def test_trials_with_a_row_are_not_run_again(small, monkeypatch, tmp_path):
    """With results that follow from the settings in place of trainings, which the next test has."""
    ran = []

    class Finished:
        def __init__(self, settings):
            self.accuracy = settings.get("lr", 0) + settings.get("cutout", 0)

        def read_results(self):
            scores = {"test": {"RGB": {"accuracy": self.accuracy}}}
            return {"models": {"prism4_small": {"scores": scores, "flipped": scores, "train_seconds": 12.0}}}

        def read_environment(self):
            versions = {"torch": "2.14.1", "torchvision": "0.29.1"}
            return {"commit": "0" * 40, "gpu": None, "cores": 1, "cpu": "C", "python": "3.11", "versions": versions}

    def train(name, network, data, out, core, settings):
        ran.append((name, settings.get("epochs")))
        return Finished(settings)

    monkeypatch.setattr(trials, "train", train)
    started = ["--data", str(small), "--out", str(tmp_path / "runs"), "--networks", "prism4_small", "--minutes", "1"]
    monkeypatch.setattr(trials, "make_folders", lambda data, out: (out / "choices").symlink_to(data / "choices"))
    assert trials.main(started, tmp_path) == 0
    # 60 seconds of 51 images an epoch, where the probe took 12 s for 5 epochs of 24 images.
    assert ran == [("probe-prism4_small", 5)] + [(f"prism4_small-{number}", 11) for number in range(1, 7)]
    found = trials.read(tmp_path)
    assert trials.tuned("prism4_small", found) == Choice(lr=0.02, strength=1)
    trials.write(found[:4], tmp_path)
    ran.clear()
    (tmp_path / "runs/choices").unlink()
    assert trials.main(started, tmp_path) == 0
    assert [name for name, _ in ran] == ["probe-prism4_small", "prism4_small-5", "prism4_small-6"]
    assert trials.read(tmp_path) == found


@pytest.mark.slow
def test_a_trial_trains_tests_on_the_deciding_images_and_is_not_repeated(small):
    core = min(os.sched_getaffinity(0))
    settings = replace(Choice(), strength=1).settings | {"epochs": 3, "holdout": 0}
    folder = trials.train("prism4_small-1", "prism4_small", small / "choices", small, core, settings)
    found = folder.read_results()
    assert (found["data"]["train"], found["data"]["test"]) == (51, 9)
    assert found["models"]["prism4_small"]["best_epoch"] == 3
    assert set(found["models"]["prism4_small"]["flipped"]["test"]) == {"RGB"}
    before = folder.results.read_bytes()
    assert trials.train("prism4_small-1", "prism4_small", small / "choices", small, core, settings).finished
    assert folder.results.read_bytes() == before
