"""The comparison at equal minutes: its table follows from predictions, and fresh images are read once."""

import lzma
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from bench.gpu import steps
from bench.studies import comparison, comparison_tables, runs, trials
from bench.studies.comparison import Training
from bench.studies.trials import Choice
from polychrome.engine.channels.combinations import every
from polychrome.engine.errors import UserError

pytestmark = pytest.mark.usefixtures("native")

CHECK_CODE = comparison.check_code
RUN = Training(
    network="prism4",
    channels="RGB",
    seed=0,
    lr=0.01,
    weight_decay=0.1,
    strength=0,
    subset_bias=0.0,
    places=0,
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


@pytest.fixture
def folder(tmp_path):
    return tmp_path / comparison.EQUAL_MINUTES


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """Lets the comparison run from a tree with changes."""
    monkeypatch.setattr(comparison, "check_code", lambda codes: None)


@pytest.fixture
def two(monkeypatch):
    """Makes a comparison of two networks whole, with one seed of each."""
    monkeypatch.setattr(comparison_tables, "SEEDS", 1)
    monkeypatch.setattr(comparison_tables, "wanted", wanted_of("resnet34", "prism4"))


def wanted_of(*networks):
    return lambda tried, seeds, epochs: [(seed, name, "RGB") for seed in range(seeds) for name in networks]


def keep(folder, network, seed, right, splits=("val", "holdout", "test", "fresh"), channels="RGB", images=1000):
    """Write predictions of which the first `right` of `images` are right, with flips averaged all of them."""
    tested = tuple(every()) if channels == "any" else (channels,)
    lines = [",".join(["split,image,label", *(name + more for name in tested for more in ("", " flipped"))])]
    for split in splits:
        guesses = (",".join([f"{int(number < right)},1"] * len(tested)) for number in range(images))
        lines += [f"{split},{number:04},1,{guess}" for number, guess in enumerate(guesses)]
    path = comparison.predictions(folder, replace(RUN, network=network, channels=channels, seed=seed).name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(("\n".join(lines) + "\n").encode()))


def rows_of(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.usefixtures("two")
def test_the_table_follows_from_the_predictions(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_tables, "SEEDS", 2)
    comparison.write([replace(RUN, seed=1), RUN, DEEP, replace(DEEP, seed=1)], folder)
    for network, right in (("prism4", (500, 520)), ("resnet34", (400, 440))):
        for seed, count in enumerate(right):
            keep(folder, network, seed, count)
    deep, shallow = rows_of(comparison_tables.equal_minutes(tmp_path))
    assert shallow["network"] == "`prism4`"
    assert shallow["fresh"].startswith("51.0 (")
    assert shallow["held-out"] == "51.0 ± 1.4"
    assert shallow["flip avg."] == "100.0"
    # 60 images at least, of any two: p of each is far below.
    assert shallow["less `resnet34`"].startswith("+9.0 (")
    assert shallow["less `resnet34`"].endswith("; p < 0.001)")
    assert deep["less `resnet34`"] == "-"
    assert (shallow["parameters"], shallow["depth"], shallow["seeds"]) == ("2,684,018", "4", "0 1")
    assert (shallow["epochs"], shallow["minutes"]) == ("70", f"{0.005 * 8649 * 70 / 60:.0f}")
    assert shallow["taken"] == "67"
    assert "flip averages are of the 1,000 images of `fresh`" in comparison_tables.equal_minutes(tmp_path)
    assert shallow["trained"] == f"{3 * 305_883_616 * 8649 * 70 / 1e15:.1f} P"
    assert "commit 0123456789ab, C, python 3.11" in comparison_tables.equal_minutes(tmp_path)


@pytest.mark.usefixtures("two")
def test_a_lead_by_chance_is_not_told_as_one(folder, tmp_path):
    comparison.write([RUN, DEEP], folder)
    keep(folder, "prism4", 0, 404)
    keep(folder, "resnet34", 0, 400)
    _, shallow = rows_of(comparison_tables.equal_minutes(tmp_path))
    assert shallow["less `resnet34`"].startswith("+0.4 (")
    assert shallow["less `resnet34`"].endswith("; p 0.125)")  # 2 / 2**4


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("missing", [{"networks": 3}, {"seeds": 2}, {"fresh": False}])
def test_before_all_are_tested_on_fresh_images_the_held_out_ones_are_compared(folder, tmp_path, monkeypatch, missing):
    monkeypatch.setattr(comparison_tables, "SEEDS", missing.get("seeds", 1))
    monkeypatch.setattr(
        comparison_tables, "wanted", wanted_of(*("resnet34", "prism4", "prism4_small")[: missing.get("networks", 2)])
    )
    comparison.write([RUN, DEEP], folder)
    keep(folder, "prism4", 0, 500)
    keep(folder, "resnet34", 0, 400, splits=("val", "holdout", "test", "fresh")[: 3 + missing.get("fresh", True)])
    _, shallow = rows_of(comparison_tables.equal_minutes(tmp_path))
    assert "fresh" not in shallow
    assert shallow["less `resnet34`"].startswith("+10.0 (")
    told, lacking = comparison_tables.equal_minutes(tmp_path), missing.get("networks", 2) * missing.get("seeds", 1) - 2
    assert (f"{lacking} of {lacking + 2} runs are missing: not final." in told) is (lacking > 0)
    assert ("1 of 2 runs are not tested on `fresh`: not final." in told) is ("fresh" in missing)
    assert "leads and flip averages are of the 1,000 held-out images." in " ".join(told.split())


def test_without_all_trials_nothing_is_final(folder, tmp_path):
    comparison.write([RUN], folder)
    keep(folder, "prism4", 0, 500)
    assert comparison_tables.equal_minutes(tmp_path).startswith("Trials are missing: not final. Intervals")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("codes", [("a", "b"), ("a with changes", "a with changes")])
def test_runs_of_several_codes_are_not_final(folder, tmp_path, codes):
    comparison.write([replace(RUN, commit=codes[0]), replace(DEEP, commit=codes[1])], folder)
    keep(folder, "prism4", 0, 500)
    keep(folder, "resnet34", 0, 400)
    told = " ".join(comparison_tables.equal_minutes(tmp_path).split())
    assert told.startswith(f"Runs are of the code of {', '.join(dict.fromkeys(codes))}: not final.")


@pytest.mark.parametrize(
    ("right", "verdict"),
    [(600, "met"), (402, "not shown"), (400, "not shown"), (399, "not shown"), (300, "refuted")],
)
def test_the_claim_of_a_lead_over_both_stems_is_answered(folder, tmp_path, monkeypatch, right, verdict):
    names = ("resnet34", "resnet34+small_stem", "prism4")
    rows = [replace(RUN, network=name, seed=seed) for name in names for seed in (0, 1)]
    comparison.write([*rows, *(replace(RUN, channels="any", seed=seed) for seed in (0, 1))], folder)
    monkeypatch.setattr(comparison_tables, "wanted", lambda *_: [])
    for name, count in zip(names, (400, 200, right), strict=True):
        for seed in (0, 1):
            keep(folder, name, seed, count)
    for seed in (0, 1):
        keep(folder, "prism4", seed, 500, channels="any")
    told = " ".join(comparison_tables.equal_minutes(tmp_path).split())
    claim = "That `prism4`, the better flagship by the trials, is more accurate"
    assert f"{claim}: {verdict} against `resnet34`, met against `resnet34+small_stem`." in told


def test_epochs_follow_from_probes_that_are_made_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "make_folders", lambda data, out: None)
    seconds = {(name, "RGB"): 0.001 * number for number, name in enumerate(trials.CONTENDERS, 1)}
    monkeypatch.setattr(trials, "probed", lambda new, known, out: {who: seconds[who] for who in new})
    found = comparison.probes(tmp_path, tmp_path, folder)
    assert found == {name: 0.001 * number for number, name in enumerate(trials.CONTENDERS, 1)}
    monkeypatch.setattr(trials, "probed", lambda *_: pytest.fail("probed again"))
    assert comparison.probes(tmp_path, tmp_path, folder) == found


def test_one_command_trains_in_a_folder_at_a_time(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "hold", lambda out: False)
    monkeypatch.setattr(comparison, "wanted", lambda *_: [])
    with pytest.raises(UserError, match=r"another command trains in .*: wanted one at a time"):
        comparison.main(["--data", str(tmp_path), "--out", str(tmp_path)], tmp_path)


def test_a_list_of_fresh_images_that_is_none_is_found_before_the_first_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "wanted", lambda *_: [(0, "prism4", "RGB")])
    monkeypatch.setattr(comparison, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=r"nosuch\.txt is no list of images and labels: .*No such file"):
        comparison.main(["--data", str(tmp_path), "--out", str(tmp_path), "--fresh", "nosuch.txt"], tmp_path)


def test_each_run_is_begun_with_the_code_of_rows_and_of_begun_runs(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(comparison, "check_code", lambda codes: asked.append(list(codes)))
    monkeypatch.setattr(comparison, "wanted", lambda *_: [(seed, "prism4", "RGB") for seed in (0, 1, 2)])
    monkeypatch.setattr(comparison, "probes", lambda *_: {})
    monkeypatch.setattr(comparison, "train", lambda core, seed, *_, **__: replace(RUN, seed=seed))
    monkeypatch.setattr(trials, "tuned", lambda *_: RUN.choice)
    monkeypatch.setattr(runs, "cores", lambda: [None])
    begun = comparison._folder(tmp_path, 2, "prism4", "RGB").root
    begun.mkdir(parents=True)
    for name in ("config.toml", "results.json", "last.pt"):
        (begun / name).write_text("{}")
    (begun / "environment.json").write_text('{"commit": "fedcba98765432100000aaaaaaaaaaaaaaaaaaaa"}')
    comparison.main(["--data", str(tmp_path), "--out", str(tmp_path)], tmp_path)
    own = "fedcba987654"
    assert asked == [[own], [own], [RUN.commit, own], [RUN.commit, RUN.commit, own]]
    assert [row.seed for row in comparison.read(folder)] == [0, 1, 2]


def test_a_training_has_one_row(folder):
    comparison.write([RUN, replace(RUN, epochs=71)], folder)
    with pytest.raises(ValueError, match=r"comparison\.csv has several rows for prism4-seed0"):
        comparison.read(folder)


@pytest.mark.parametrize(("name", "value"), [("epochs", 700), ("lr", 0.02), ("params", 1), ("images", 9)])
def test_the_trainings_of_a_network_differ_in_nothing_but_chance(folder, name, value):
    comparison.write([RUN, replace(RUN, seed=1, train_seconds=1.0, commit="b", machine="m"), DEEP], folder)
    assert len(comparison.read(folder)) == 3
    comparison.write([RUN, replace(RUN, seed=1, **{name: value})], folder)
    with pytest.raises(ValueError, match=rf"comparison\.csv: prism4-seed0 and prism4-seed1 differ in {name}"):
        comparison.read(folder)


def test_a_comparison_goes_on_with_the_code_of_its_rows(monkeypatch):
    monkeypatch.setattr(comparison, "is_same_code", lambda code: code == RUN.commit)
    monkeypatch.setattr(comparison, "commit", lambda: "a" * 40)
    CHECK_CODE([RUN.commit])
    with pytest.raises(UserError, match="some runs are of commit fedcba987654 with changes: go on with that code"):
        CHECK_CODE([RUN.commit, f"{RUN.commit}, fedcba987654 with changes"])
    for code in (None, "a" * 40 + " with changes"):
        monkeypatch.setattr(comparison, "commit", lambda code=code: code)
        with pytest.raises(
            UserError, match=f"has to be in a commit, which their rows name, and is in {code or 'none'}"
        ):
            CHECK_CODE([])


def test_code_is_the_same_where_the_packages_are():
    if not (Path(comparison.__file__).resolve().parents[2] / ".git").exists():
        pytest.skip("no clone")
    assert comparison.is_same_code("HEAD")
    assert not comparison.is_same_code("0123456789ab")  # no commit
    assert not comparison.is_same_code("HEAD with changes")


def test_an_evaluation_by_hand_does_not_stand_for_the_reading_of_fresh_images(folder, tmp_path, stripes, monkeypatch):
    keep(folder, "prism4", 0, 500, splits=("val", "holdout", "test"))
    every = tmp_path / "task2" / RUN.name / "evaluation" / "prism4.csv"
    every.parent.mkdir(parents=True)
    head = "split,image,label,RGB,RGB flipped\n"
    every.write_text(head + "test,images/other.jpg,1,1,1\n")
    fresh = tmp_path / "fresh.txt"
    fresh.write_text("images/new 1.jpg 2\nimages/new 2.jpg 0\n")

    def evaluated(root, channels, split, place, *_):
        lines = (Path(place) / "test.txt").read_text().splitlines()
        rows = [line.rsplit(maxsplit=1) for line in lines]
        every.write_text(head + "".join(f"test,{image},{label},2,2\n" for image, label in rows))

    monkeypatch.setattr(comparison, "evaluate_run", evaluated)
    comparison.test_on_fresh([RUN], stripes, tmp_path, fresh, folder)
    assert runs_right(comparison.predictions(folder, RUN.name), "fresh") == {
        "images/new 1.jpg": True,
        "images/new 2.jpg": False,
    }


def test_equal_minutes_are_the_nearest():
    assert [comparison.epochs_of(60, 0.0264, images) for images in (8649, 9000, 10**6)] == [16, 15, 3]


def test_no_seeds_are_added_after_a_look(tmp_path, capsys):
    with pytest.raises(SystemExit):
        comparison.main(["--data", str(tmp_path), "--out", str(tmp_path), "--seeds", "5"], tmp_path)
    assert "unrecognized arguments: --seeds 5" in capsys.readouterr().err


def test_the_gpu_command_trains_all_that_the_table_at_equal_epochs_wants(tmp_path, monkeypatch):
    def train(core, seed, network, channels, epochs, **_):
        return replace(RUN, network=network, channels=channels, seed=seed, epochs=epochs)

    (step,) = steps.studies("data")
    monkeypatch.setattr(comparison, "train", train)
    arguments = step.arguments[2:]
    assert comparison.main([*arguments, "--out", str(tmp_path), "--results", str(tmp_path)], tmp_path) == 0
    rows = comparison.read(tmp_path / comparison.EQUAL_EPOCHS)
    assert {(row.network, row.seed) for row in rows} == set(product(comparison.LONG, range(2)))
    for row in rows:
        keep(tmp_path / comparison.EQUAL_EPOCHS, row.network, row.seed, 500)
    assert "not final" not in comparison_tables.equal_epochs(tmp_path)


def test_gates_on_the_path_are_told_beside(folder, tmp_path):
    comparison.write([replace(RUN, depth_written_out=7)], folder)
    keep(folder, "prism4", 0, 500)
    assert rows_of(comparison_tables.equal_minutes(tmp_path))[0]["depth"] == "4/7"


def test_rows_are_read_as_written(folder, tmp_path):
    assert comparison.read(folder) == []
    for table in ("equal_minutes", "equal_epochs", "one_for_all"):
        assert getattr(comparison_tables, table)(tmp_path) == "Not measured yet."
    more = [replace(RUN, channels="any", subset_bias=1.0, places=1), replace(DEEP, channels="G")]
    comparison.write([*more[::-1], RUN, DEEP], folder)
    assert comparison.read(folder) == [DEEP, RUN, *more]


@pytest.mark.parametrize("whole", [True, False])
def test_one_network_is_compared_with_those_for_a_combination_alone(folder, tmp_path, monkeypatch, whole):
    rows = [replace(each, channels=channels) for channels in ("RGB", "RG", "G") for each in (RUN, DEEP)]
    comparison.write([*rows, replace(RUN, channels="any"), replace(RUN, network="prism4_small")], folder)
    keep(folder, "prism4", 0, 500, channels="any")
    keep(folder, "prism4_small", 0, 900)
    for channels, ours, theirs in (("RGB", 500, 510), ("RG", 540, 400), ("G", 505, 505)):
        keep(folder, "prism4", 0, ours, channels=channels)
        keep(folder, "resnet34", 0, theirs, channels=channels)
    every = [*((0, row.network, row.channels) for row in rows), (0, "prism4", "any"), (0, "prism4_small", "RGB")]
    lacking = [(0, "resnet34+small_stem", "RGB")] * (not whole)
    monkeypatch.setattr(comparison_tables, "wanted", lambda *_, **__: [*every, *lacking])
    found = {row["channels"]: row for row in rows_of(comparison_tables.one_for_all(tmp_path))}
    met, unmet = (", met", ", refuted") if whole else ("", "")
    images = "1,000 images of `fresh`" if whole else "1,000 held-out images"
    assert images in " ".join(comparison_tables.one_for_all(tmp_path).split())
    assert list(found) == ["RGB", "RG", "GB", "RB", "R", "G", "B"]
    one = "`prism4`, one for all"
    assert list(found["RG"]) == [
        "channels",
        one,
        *(f"`{n}`, {w}" for n in ("prism4", "resnet34") for w in ("alone", "lead")),
    ]
    assert found["RGB"][one].startswith("50.0 (")
    assert found["RGB"]["`prism4`, alone"].startswith("50.0 (")
    assert found["RGB"]["`prism4`, lead"] == f"+0.0 (+0.0 to +0.0){met}"
    # 10 of 1,000 images behind, with a standard error of 0.3 points.
    assert found["RGB"]["`resnet34`, lead"] == f"-1.0 (-1.6 to -0.4){met}"
    assert found["RG"]["`prism4`, lead"].startswith("-4.0 (")
    assert found["RG"]["`prism4`, lead"].endswith(f"){unmet}")
    assert found["RG"]["`resnet34`, lead"].endswith(f"){met}")
    assert found["R"] == {"channels": "R", one: found["RGB"][one]} | dict.fromkeys(list(found["R"])[2:], "-")


def test_the_better_networks_of_the_trials_are_trained_for_other_channels():
    with pytest.raises(ValueError, match="prism4 on RGB has 0 of 6 trials"):
        comparison.wanted([], 3)
    good = {"resnet34+small_stem": 0.4, "resnet34": 0.3, "prism4": 0.45, "prism4_small": 0.46, "simple_4layer_cnn": 0.5}
    on_rgb = [each for name, value in good.items() for each in tried(name, value)]
    with pytest.raises(ValueError, match="prism4_small on any has 0 of 6 trials"):
        comparison.wanted(on_rgb, 3)
    found = comparison.wanted([*on_rgb, *tried("prism4_small", 0.4, channels="any")], 2)
    assert len(found) == 2 * 10 == len(set(found))
    assert [who for seed, *who in found if seed == 1] == [
        *([name, "RGB"] for name in trials.CONTENDERS),
        ["prism4_small", "any"],
        ["prism4_small", "RG"],
        ["resnet34+small_stem", "RG"],
        ["prism4_small", "G"],
        ["resnet34+small_stem", "G"],
    ]


def test_at_equal_epochs_both_deep_stems_are_compared_with_prism4():
    assert comparison.wanted([], 2, 300) == [
        (seed, name, "RGB") for seed in (0, 1) for name in ("resnet34", "resnet34+small_stem", "prism4")
    ]


def tried(network, accuracy, seconds=1e-3, channels="RGB"):
    """Return a network's trials, the first of which is the best."""
    about = {"epochs": 9, "seconds_per_image": seconds, "flipped": 0.5, "train_seconds": 1.0}
    about |= {"commit": "a", "machine": "m"}
    choice = vars(Choice()).values()
    return [
        trials.Trial(network, channels, number, *choice, accuracy=accuracy - number / 1000, **about)
        for number in range(1, trials.TRIALS + 1)
    ]


def test_fresh_images_are_read_once(folder, tmp_path, monkeypatch):
    keep(folder, "prism4", 0, 500)
    monkeypatch.setattr(comparison, "evaluate_run", lambda *_: pytest.fail("read"))
    before = comparison.predictions(folder, RUN.name).read_bytes()
    comparison.test_on_fresh([RUN], tmp_path, tmp_path, tmp_path / "fresh.txt", folder)
    assert comparison.predictions(folder, RUN.name).read_bytes() == before


def test_weights_that_are_gone_are_named(folder, tmp_path):
    keep(folder, "prism4", 0, 500, splits=("val", "holdout", "test"))
    with pytest.raises(
        ValueError, match=r"the weights of prism4-seed0 are not in .* without their rows they are trained again"
    ):
        comparison.test_on_fresh([RUN], tmp_path, tmp_path, tmp_path / "fresh.txt", folder)


def test_images_of_a_split_are_not_fresh(folder, tmp_path, stripes):
    keep(folder, "prism4", 0, 500, splits=("val", "holdout", "test"))
    (tmp_path / "task2" / RUN.name).mkdir(parents=True)
    with pytest.raises(ValueError, match="18 fresh images are in a split of"):
        comparison.test_on_fresh([RUN], stripes, tmp_path, stripes / "val.txt", folder)


@pytest.mark.parametrize("channels", ["RGB", "any", "G"])
def test_after_a_training_no_other_settings_are_chosen(folder, tmp_path, monkeypatch, channels):
    best = Choice(lr=0.02, strength=1)
    everything = [tried(name, 0.4, channels=what) for name in ("prism4", "resnet34") for what in ("RGB", "any")]
    trials.write([each for own in everything for each in own], tmp_path)
    row = replace(RUN, channels=channels)
    comparison.check_choices([row], trials.read(tmp_path), row.minutes, None)
    comparison.check_choices([row], trials.read(tmp_path), 1.0, row.epochs)
    for asked in ((row.minutes + 1, None), (row.minutes, 71)):
        with pytest.raises(ValueError, match="was trained for 70 epochs, not for 71"):
            comparison.check_choices([row], trials.read(tmp_path), *asked)
    comparison.write([replace(row, **vars(best))], folder)
    monkeypatch.setattr(comparison, "train", lambda *_, **__: pytest.fail("trained"))
    start = ["--data", str(tmp_path), "--out", str(tmp_path), "--fresh", "fresh.txt"]
    with pytest.raises(
        ValueError, match=r"was trained by Choice\(lr=0\.02, .* and the best trial is now Choice\(lr=0\.01"
    ):
        comparison.main(start, tmp_path)


@pytest.mark.slow
def test_a_network_is_trained_and_then_tested_on_images_it_has_never_seen(
    folder, tmp_path, stripes, monkeypatch, capsys
):
    monkeypatch.setattr(trials, "HELD_OUT", 12)
    for name in ("CONTENDERS", "FLAGSHIPS"):
        monkeypatch.setattr(trials, name, ("prism4_small",))
    monkeypatch.setattr(comparison, "RIVALS", ("prism4_small",))
    monkeypatch.setattr(comparison, "ALONE", ())
    data = shutil.copytree(stripes, tmp_path / "data")
    lines = (data / "test.txt").read_text().splitlines(keepends=True)
    (data / "test.txt").write_text("".join(lines[9:]))
    seconds = 60 * 0.05 / (60 * 3)
    trials.write([each for what in ("RGB", "any") for each in tried("prism4_small", 0.5, seconds, what)], tmp_path)
    runs.write(folder / comparison.PROBES, [comparison.Probe("prism4_small", seconds, "a")])
    fresh = tmp_path / "fresh.txt"
    fresh.write_text("".join(lines[:9]))
    start = ["--data", str(data), "--out", str(tmp_path / "runs"), "--networks", "prism4_small"]
    start += ["--minutes", "0.05"]
    monkeypatch.setattr(comparison, "SEEDS", 1)
    capsys.readouterr()
    assert comparison.main([*start, "--fresh", str(fresh)], tmp_path) == 0
    assert capsys.readouterr().out == ""  # nothing of what the fresh images show
    rows = comparison.read(folder)
    assert [row.channels for row in rows] == ["RGB", "any"]
    for row in rows:
        assert (row.epochs, row.images, row.depth, row.depth_written_out) == (3, 60, 4, 4)
        path = comparison.predictions(folder, row.name)
        known, fresh_ones = (runs_right(path, split) for split in ("test", "fresh"))
        assert (len(known), len(fresh_ones)) == (9, 9)
        assert [f"{image} {int(image.split()[1][:-4]) % 3}\n" for image in fresh_ones] == lines[:9]
    before = [comparison.predictions(folder, row.name).read_bytes() for row in rows]
    assert comparison.main([*start, "--fresh", str(fresh)], tmp_path) == 0
    assert [comparison.predictions(folder, row.name).read_bytes() for row in rows] == before
    # Interrupted after the test and before its row: what was read is taken, and not read again.
    monkeypatch.setattr(comparison, "evaluate_run", lambda *_: pytest.fail("read"))
    comparison.write(rows[1:], folder)
    assert comparison.main([*start, "--fresh", str(fresh)], tmp_path) == 0
    assert comparison.read(folder) == rows
    assert [comparison.predictions(folder, row.name).read_bytes() for row in rows] == before
    comparison.write(rows[1:], folder)
    fresh.write_text("".join(lines[1:9]))
    with pytest.raises(ValueError, match=r"evaluation/prism4_small\.csv is not of the 8 images of"):
        comparison.main([*start, "--fresh", str(fresh)], tmp_path)
    monkeypatch.setattr(comparison, "LONG", ("prism4_small",))
    with pytest.raises(ValueError, match="was trained with epochs 3, not 9"):
        comparison.main([*start, "--epochs", "9"], tmp_path)
    comparison.write(rows, folder)
    assert "`prism4_small`" in comparison_tables.equal_minutes(tmp_path)
    assert "`prism4_small`, one for all" in comparison_tables.one_for_all(tmp_path)


@pytest.mark.slow
def test_a_comparison_at_equal_epochs_is_kept_apart(tmp_path, stripes, monkeypatch):
    monkeypatch.setattr(trials, "HELD_OUT", 12)
    monkeypatch.setattr(comparison, "LONG", ("prism4_small",))
    trials.write(tried("prism4_small", 0.5), tmp_path)
    start = ["--data", str(stripes), "--out", str(tmp_path / "runs"), "--epochs", "4"]
    monkeypatch.setattr(comparison, "SEEDS_OF_EPOCHS", 1)
    assert comparison.main([*start, "--results", str(tmp_path / "apart")], tmp_path) == 0
    (row,) = comparison.read(tmp_path / "apart" / comparison.EQUAL_EPOCHS)
    assert (row.epochs, row.minutes) == (4, pytest.approx(row.train_seconds / 60, abs=1e-3))
    assert "| `prism4_small` | 4 |" in comparison_tables.equal_epochs(tmp_path / "apart")
    assert not (tmp_path / comparison.EQUAL_MINUTES).exists()


def runs_right(path, split):
    """Return whether the prediction on all channels is right, by image of a split."""
    rows = [line for line in comparison.rows_of(path) if line[0] == split]
    return {image: guess == label for _, image, label, guess, *_ in rows}
