"""The trials that tune each contender: what is tried after what, on which images, and how a table of them is kept."""

import os
from dataclasses import asdict, replace
from threading import Lock

import pytest

from bench.studies import runs, trials
from bench.studies.trials import Choice, Trial
from polychrome.engine.data.sets import division, listing
from polychrome.engine.run_folder import RunFolder
from polychrome.train import recipes
from polychrome.train.settings.config import OF_AN_ENTRY

pytestmark = pytest.mark.usefixtures("native")

ABOUT = {
    "epochs": 9,
    "seconds_per_image": 0.001,
    "flipped": 0.5,
    "train_seconds": 1199.5,
    "commit": "a",
    "machine": "m",
}


def trial(number, choice, accuracy, network="prism4", channels="RGB"):
    return Trial(network, channels, number, *asdict(choice).values(), accuracy=accuracy, **ABOUT)


def all_trials(accuracy, network="prism4", channels="RGB", following=trials.following):
    """Return a network's trials where a choice reaches `accuracy(choice)`."""
    done = []
    while (choice := following(done)) is not None:
        done.append(trial(len(done) + 1, choice, accuracy(choice), network, channels))
    return done


def matching(best):
    """Return how many settings of a choice are those of `best`."""
    return lambda choice: sum(vars(choice)[name] == value for name, value in vars(best).items())


def test_six_trials_go_from_rates_to_augmentation_to_decays():
    best = Choice(lr=0.02, weight_decay=0.3, strength=1)
    done = all_trials(matching(best))
    assert [found.choice for found in done] == [
        Choice(0.01),
        Choice(0.005),
        Choice(0.02),
        Choice(0.02, strength=1),
        Choice(0.02, 0.3, strength=1),
        Choice(0.04, 0.3, strength=1),
    ]
    assert trials.tuned("prism4", "RGB", done) == best


def lower(choice):
    """Return an accuracy by which lower rates and larger weight decays are better without end."""
    return 1 - 10 * choice.lr - 0.1 / choice.weight_decay * choice.lr


def test_rivals_get_more_trials_where_their_best_is_at_the_edge_of_what_was_tried():
    more = [each.choice for each in all_trials(lower, "resnet34")[6:]]
    assert more == [Choice(0.00125, 0.3), Choice(0.000625, 0.3), Choice(0.0003125, 0.3)]
    within = Choice(lr=0.02, weight_decay=0.3)
    assert [each.choice for each in all_trials(matching(within), "resnet34")[6:]] == [Choice(0.02, 1.0)]
    assert len(all_trials(lower, "prism4")) == trials.TRIALS
    done = all_trials(matching(within), "resnet34")
    with pytest.raises(ValueError, match="resnet34 on RGB has 6 of 6 trials, and the best of them is at their edge"):
        trials.tuned("resnet34", "RGB", done[:6])
    assert trials.tuned("resnet34", "RGB", done) == within


def test_the_network_for_any_channels_starts_from_the_best_on_rgb():
    start = Choice(lr=0.02, weight_decay=0.3, strength=1)
    best = replace(start, subset_bias=1.0, places=1, weight_decay=0.9)
    done = all_trials(matching(best), channels="any", following=lambda done: trials.following_any(start, done))
    assert [found.choice for found in done] == [
        start,
        replace(start, subset_bias=1.0),
        replace(start, subset_bias=2.0),
        replace(start, subset_bias=1.0, places=1),
        replace(start, subset_bias=1.0, places=1, strength=0),
        best,
    ]
    assert trials.tuned("prism4", "any", done) == best
    assert len(done) == trials.TRIALS == len(all_trials(matching(best)))


def test_nothing_is_tuned_before_all_trials_are_there():
    done = all_trials(matching(Choice()))
    with pytest.raises(ValueError, match="prism4 on RGB has 5 of 6 trials"):
        trials.tuned("prism4", "RGB", done[:-1])
    with pytest.raises(ValueError, match="prism4 on any has 0 of 6 trials"):
        trials.tuned("prism4", "any", done)


def test_the_better_flagship_is_the_one_on_rgb():
    poor, good = (all_trials(lambda choice, value=value: value, name) for value, name in ((0.3, "a"), (0.4, "b")))
    other = all_trials(lambda choice: 0.9, "a", "any")
    assert trials.best(("a", "b"), [*poor, *good, *other]) == "b"


def test_what_does_not_help_is_not_kept():
    done = all_trials(lambda choice: 1 - choice.strength - abs(choice.weight_decay - 0.1) - abs(choice.lr - 0.01))
    assert len(done) == 6
    assert trials.tuned("prism4", "RGB", done) == Choice()
    small = all_trials(lambda choice: -choice.lr)
    assert [found.lr for found in small] == [0.01, 0.005, 0.02, 0.005, 0.005, 0.0025]
    assert trials.tuned("prism4", "RGB", small).lr == 0.0025
    assert done[-1].choice == Choice(weight_decay=0.03)


def test_every_setting_of_a_choice_is_one_of_a_training():
    assert {name for strength in trials.STRENGTHS for name in Choice(strength=strength).settings} <= OF_AN_ENTRY
    assert recipes.load("strong", "task2")["models"] == trials.CONTENDERS


def test_a_table_is_read_as_it_was_written_by_network_and_number(tmp_path):
    rows = [trial(2, Choice(0.005), 0.4), trial(1, Choice(), 0.1 + 0.2), trial(1, Choice(), 0.3, "resnet34")]
    rows.append(trial(1, Choice(subset_bias=2.0, places=1), 0.5, "resnet34", "any"))
    trials.write(rows, tmp_path)
    assert trials.read(tmp_path) == [rows[2], rows[1], rows[0], rows[3]]
    assert trials.read(tmp_path / "none") == []


def test_the_table_shows_every_trial_and_marks_what_is_kept(tmp_path):
    assert trials.table(tmp_path) == "Not measured yet."
    best = Choice(lr=0.02, weight_decay=0.3, strength=1)
    done = all_trials(lambda choice: 0.3 + matching(best)(choice) / 100)
    one = [trial(1, replace(best, subset_bias=1.0, places=1), 0.2, channels="any")]
    trials.write([*done, *one], tmp_path)
    lines = [line.strip("| ").split(" | ") for line in trials.table(tmp_path).splitlines() if line.startswith("|")]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert [row["deciding"] for row in rows] == ["32.0", "32.0", "33.0", "34.0", "**35.0**", "34.0", "20.0"]
    assert [row["augmentation"] for row in rows] == ["usual"] * 3 + ["strong"] * 4
    assert (rows[4]["rate"], rows[4]["weight decay"], rows[4]["minutes"]) == ("0.02", "0.3", "20")
    assert (rows[6]["trained for"], rows[6]["few channels"], rows[6]["places"]) == ("any", "1", "known")
    assert "commit a, m" in trials.table(tmp_path)


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


@pytest.mark.parametrize("probed", [24, 34, 50, 51, 60])
def test_the_images_of_a_probe_are_of_all_classes(monkeypatch, stripes, tmp_path, probed):
    """Of a list in the order of its classes too: a class without an image would be refused, and end the study."""
    for name in ("images", "train.txt", "val.txt", "test.txt"):
        (tmp_path / name).symlink_to(stripes / name)
    lines = (stripes / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train.txt").write_text("\n".join(sorted(lines, key=lambda line: int(line.split()[-1]))))
    for name, value in {"HELD_OUT": 12, "DECIDING": 9, "PROBED": probed}.items():
        monkeypatch.setattr(trials, name, value)
    trials.make_folders(tmp_path, tmp_path / "out")
    whole, labels = (listing.read(tmp_path / "out" / name).splits["train"].labels for name in ("choices", "probe"))
    assert len(labels) == min(probed, len(whole))
    shares = [whole.count(label) * len(labels) / len(whole) for label in range(3)]
    assert [labels.count(label) for label in range(3)] == pytest.approx(shares, abs=1)


def test_trials_with_a_row_are_not_run_again(small, monkeypatch, tmp_path):
    """With results that follow from the settings in place of trainings, which the next test has."""
    ran = []

    class Finished:
        def __init__(self, entry, choice):
            self.entry, self.accuracy = entry, choice.lr + choice.strength + choice.subset_bias + choice.places

        def read_results(self):
            scores = {"test": {"RGB": {"accuracy": self.accuracy}, "G": {"accuracy": self.accuracy + 0.1}}}
            return {"models": {self.entry: {"scores": scores, "flipped": scores, "train_seconds": 12.0}}}

        def read_environment(self):
            versions = {"torch": "2.14.1", "torchvision": "0.29.1"}
            return {"commit": "0" * 40, "gpu": None, "cores": 1, "cpu": "C", "python": "3.11", "versions": versions}

    def train(name, network, channels, choice, data, out, core, epochs):
        ran.append((name, epochs))
        entry = trials.entry_of(network, channels, choice.places)
        return Finished(entry, choice), entry

    monkeypatch.setattr(trials, "train", train)
    monkeypatch.setattr(runs, "cores", lambda: [0, 1])
    monkeypatch.setattr(trials, "CONTENDERS", ("prism4_small",))
    monkeypatch.setattr(trials, "FLAGSHIPS", ("prism4_small",))
    started = ["--data", str(small), "--out", str(tmp_path / "runs"), "--networks", "prism4_small", "--minutes", "1"]
    monkeypatch.setattr(trials, "make_folders", lambda data, out: (out / "choices").symlink_to(data / "choices"))
    assert trials.main(started, tmp_path) == 0
    # 60 seconds of 51 images an epoch, where the probes took 12 s for 5 epochs of 24 images.
    assert set(ran[:2]) == {("probe-prism4_small-0", 5), ("probe-prism4_small-1", 5)}
    assert ran[2:8] == [(f"prism4_small-{number}", 11) for number in range(1, 7)]
    # The machine may be another one than before: what has been probed is probed again beside what is new.
    assert {name for name, _ in ran[8:12]} == {
        f"probe-prism4_small-{which}any-{core}" for which in ("", "beside-prism4_small-") for core in (0, 1)
    }
    assert ran[12:] == [(f"prism4_small-any-{number}", 11) for number in range(1, 7)]
    found = trials.read(tmp_path)
    assert trials.tuned("prism4_small", "RGB", found) == Choice(lr=0.04, strength=1)
    assert trials.tuned("prism4_small", "any", found) == Choice(lr=0.04, strength=1, subset_bias=2.0, places=1)
    assert found[0].accuracy == pytest.approx(0.01 + 0.05)  # the mean over the combinations
    trials.write([*found[:4], *found[6:10]], tmp_path)
    ran.clear()
    (tmp_path / "runs/choices").unlink()
    assert trials.main(started, tmp_path) == 0
    assert ran == [(f"prism4_small-{name}", 11) for name in ("5", "6", "any-5", "any-6")]
    assert trials.read(tmp_path) == found


def test_a_trial_whose_loss_is_not_finite_has_a_row_and_wins_nothing(small, monkeypatch, tmp_path):
    facts = {"commit": "0" * 40, "gpu": None, "cores": 1, "cpu": "C", "python": "3.11"}
    facts |= {"versions": {"torch": "2.14.1", "torchvision": "0.29.1"}}
    monkeypatch.setattr(RunFolder, "read_environment", lambda run: facts)
    scores = {"test": {"RGB": {"accuracy": 0.3}}}
    result = {"models": {"prism4": {"scores": scores, "flipped": scores, "train_seconds": 60.0}}}
    monkeypatch.setattr(RunFolder, "read_results", lambda run: result)

    def train(name, network, channels, choice, data, out, core, epochs):
        if choice.lr == 0.02:
            raise runs.DivergedError(name)
        return RunFolder(out / name), network

    monkeypatch.setattr(trials, "train", train)
    trials._tune(None, "prism4", "RGB", small, 1.0, 1e-3, tmp_path, Lock())
    found = trials.read(tmp_path)
    assert [(row.lr, row.diverged) for row in found[:4]] == [
        (0.01, False),
        (0.005, False),
        (0.02, True),
        (0.01, False),
    ]
    assert trials.tuned("prism4", "RGB", found) == Choice()
    assert "| `prism4` | RGB | 0.02 | 0.1 | usual | - | - | 1176 | diverged | - | - |" in trials.table(tmp_path)


def test_a_network_is_probed_by_what_has_been_probed_before(monkeypatch, tmp_path):
    """On a machine that takes twice the time of the one before."""
    names = []

    def seconds(core, network, channels, out, name):
        names.append(name)
        return {"resnet34": 0.02, "prism4": 0.008 + 0.002 * int(name[-1])}[network]

    monkeypatch.setattr(trials, "_seconds_per_image", seconds)
    monkeypatch.setattr(runs, "cores", lambda: [0, 1])
    assert trials.probed([("prism4", "any")], (("resnet34", "RGB"), 0.01), tmp_path) == {("prism4", "any"): 0.0045}
    assert sorted(names) == [
        *(f"probe-prism4-any-{core}" for core in (0, 1)),
        *(f"probe-resnet34-beside-prism4-any-{core}" for core in (0, 1)),
    ]
    assert trials.probed([("prism4", "RGB")], None, tmp_path) == {("prism4", "RGB"): 0.009}


@pytest.mark.slow
def test_a_rate_that_is_too_high_is_told_from_other_failures(small):
    core = min(os.sched_getaffinity(0))
    with pytest.raises(runs.DivergedError, match="wild"):
        trials.train("wild", "resnet34", "RGB", Choice(lr=1e30), small / "choices", small, core, epochs=3)


@pytest.mark.slow
def test_a_trial_trains_tests_on_the_deciding_images_and_is_not_repeated(small):
    core, choice = min(os.sched_getaffinity(0)), replace(Choice(), strength=1)
    what = "prism4_small-1", "prism4_small", "RGB", choice, small / "choices", small, core
    folder, entry = trials.train(*what, epochs=3)
    assert entry == "prism4_small"
    found = folder.read_results()
    assert (found["data"]["train"], found["data"]["test"]) == (51, 9)
    assert found["models"]["prism4_small"]["best_epoch"] == 3
    assert set(found["models"]["prism4_small"]["flipped"]["test"]) == {"RGB"}
    before = folder.results.read_bytes()
    assert trials.train(*what, epochs=3)[0].finished
    assert folder.results.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["any", "RG"])
def test_networks_for_any_and_for_some_channels_are_tested_on_these(small, channels):
    choice = Choice(subset_bias=1.0, places=1) if channels == "any" else Choice()
    what = "name", "prism4_small", channels, choice, small / "choices", small, min(os.sched_getaffinity(0))
    folder, entry = trials.train(*what, epochs=3)
    found = folder.read_results()["models"]
    assert list(found) == [entry] == ["prism4_small+places" if channels == "any" else "prism4_small+alone"]
    tested = {"RGB", "RG", "GB", "RB", "R", "G", "B"} if channels == "any" else {"RG"}
    assert set(found[entry]["scores"]["test"]) == set(found[entry]["flipped"]["test"]) == tested
    assert found[entry]["protocol"] == ("mask" if channels == "any" else "one-per-combination")
