"""The tables of what trained models reach, drawn from the tables of runs."""

import csv
import json
from math import sqrt
from statistics import fmean, stdev

import pytest
from PIL import Image

from bench.gpu import state
from bench.gpu import steps as listed
from bench.studies import collect as keeping
from bench.studies import comparison as contest
from bench.studies import study, targets
from polychrome.engine.report import comparison

LABELS = ("RGB", *study.PAIRS, *study.SINGLES)


def system(name, accuracies, spread="", flipped=None, **others):
    """Return a system's rows: the held-out `accuracies` of combinations, and with flip averaging that on RGB."""
    costs = {"params": "491700", "macs": "55384556", "depth": "4", "distinct_layers": "4", "train_seconds": "614.0"}
    common = {"model": name, "protocol": "subset", "spread": spread, "seeds": "0 1", "epochs": "30"} | costs | others
    rows = [
        common | {"split": "holdout", "combination": label, "flip_averaging": "no", "accuracy": str(accuracy)}
        for label, accuracy in zip(LABELS, accuracies, strict=False)
    ]
    if flipped:
        rows.append(rows[0] | {"flip_averaging": "yes", "accuracy": str(flipped)})
    return rows


@pytest.fixture
def keep(tmp_path):
    """Return a function that makes a run's folder with these rows, and keeps its table as a study of a name."""

    def kept(name, *systems):
        run = tmp_path / f"run-{name}"
        run.mkdir()
        with (run / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, comparison.COLUMNS)
            writer.writeheader()
            writer.writerows(row for rows in systems for row in rows)
        versions = {"torch": "2.15.0", "torchvision": "0.29.2"}
        facts = {
            "cpu": "Some CPU",
            "cores": 2,
            "gpu": None,
            "python": "3.11.7",
            "versions": versions,
            "commit": "c" * 40,
        }
        (run / "environment.json").write_text(json.dumps(facts))
        (run / "results.json").write_text("{}")
        (run / "config.toml").write_text("")
        assert keeping.main([name, str(run)], tmp_path / "results") == 0
        return tmp_path / "results"

    return kept


def cells(page):
    """Return the rows of a page's table, by their first cell without its ticks, as dicts by heading."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    heads, _, *rows = lines
    assert all(len(row) == len(heads) for row in rows)
    return [dict(zip(heads, row, strict=True)) for row in rows]


def test_a_shallow_network_is_held_against_the_resnet34_that_was_trained_as_long(keep):
    short = [system("resnet34", [0.40], depth="33", distinct_layers="33"), system("prism4", [0.42], "0.011", 0.4355)]
    keep("shallow", *short)
    results = keep(
        "shallow-100", *(system(name, [value], epochs="100") for name, value in [("resnet34", 0.5), ("prism4", 0.49)])
    )
    found = cells(study.shallow(results))
    assert [(row["system"], row["epochs"], row["held-out"], row["/ ResNet34"]) for row in found] == [
        ("`resnet34`", "30", "40.0", "100.0%"),
        ("`prism4`", "30", "42.0 ± 1.1", "105.0%"),
        ("`resnet34`", "100", "50.0", "100.0%"),
        ("`prism4`", "100", "49.0", "98.0%"),
    ]
    assert (found[0]["depth"], found[1]["flip avg."], found[1]["val"]) == ("33", "43.5 ± 1.1", "-")
    assert (found[1]["parameters"], found[1]["mult-adds"], found[1]["minutes"]) == ("491,700", "55 M", "10")


def test_shallow_networks_of_several_seeds_are_means_over_all_of_them(keep):
    def trained(seeds, *values, spread="", **others):
        named = zip(("resnet34", "prism4"), values, strict=False)
        return (system(name, [value], spread, seeds=seeds, **others) for name, value in named)

    keep("shallow", *trained("0", 0.40, 0.42, train_seconds="600"))
    keep("shallow-again", *trained("0", 0.30))
    keep("shallow-more", *trained("3 4", 0.46, spread="0.02", train_seconds="1200"))
    results = keep("shallow-other", *trained("1", 0.44, train_seconds="600"), *trained("1", 0.50, epochs="100"))
    page = study.shallow(results)
    every = [0.40, 0.44, 0.46 - 0.02 / sqrt(2), 0.46 + 0.02 / sqrt(2)]
    shown = f"{100 * fmean(every):.1f} ± {100 * stdev(every):.1f}"
    assert [(row["system"], row["epochs"], row["held-out"], row["seeds"], row["minutes"]) for row in cells(page)] == [
        ("`resnet34`", "30", shown, "0 1 3 4", "15"),
        ("`prism4`", "30", "42.0", "0", "10"),
        ("`resnet34`", "30", "30.0", "0", "10"),
        ("`resnet34`", "100", "50.0", "1", "10"),
    ]
    assert cells(page)[1]["/ ResNet34"] == f"{42 / fmean(every):.1f}%"
    joined = study.systems("shallow", results)[0]
    assert (joined["train_seconds"], joined["ratio_to_resnet34"]) == ("900.0", "")
    found = {row["what"]: row["found"] for row in cells(targets.table(results))}
    assert found["`prism4`: accuracy on RGB, of ResNet34's"] == f"{42 / fmean(every):.1f}%"
    for name in ("shallow", "shallow-more", "shallow-other"):
        assert f"`bench/results/mini50/{name}/table.csv`" in page


def test_channels_have_their_means_over_pairs_and_singles(keep):
    results = keep("channels", system("prism4", [0.5, 0.4, 0.5, 0.6, 0.1, 0.2, 0.3]), system("naive_cnn", [0.5, 0.4]))
    whole, lacking = cells(study.channels(results))
    assert [whole[head] for head in ("RGB", "RG", "B", "mean of pairs", "mean of singles")] == [
        *("50.0", "40.0", "30.0", "50.0", "20.0")
    ]
    assert (lacking["RG"], lacking["GB"], lacking["mean of pairs"]) == ("40.0", "-", "-")


def test_networks_for_one_combination_are_a_system_also_from_several_studies(keep):
    def alone(place, value):
        return [system("resnet34+alone", [value] * 7, protocol="one-per-combination, zero-pad")[place]]

    keep("channels", system("prism4", [0.5] * 7))
    keep("channels-alone-g", alone(5, 0.43))
    results = keep("channels-alone-r", alone(4, 0.41), system("prism4", [0.6] * 7))
    page = study.channels(results)
    assert [(row["system"], row["R"], row["G"], row["B"], row["minutes"]) for row in cells(page)] == [
        ("`prism4`", "50.0", "50.0", "50.0", "10"),
        ("`prism4`", "60.0", "60.0", "60.0", "10"),
        ("`resnet34+alone`", "41.0", "43.0", "-", "20"),
    ]
    places = [
        f"`bench/results/mini50/{name}/table.csv`" for name in ("channels", "channels-alone-g", "channels-alone-r")
    ]
    assert f"{' (commit cccccccccccc), '.join(places)} (commit" in " ".join(page.split())


def test_the_network_for_all_channels_alone_is_the_plain_one_of_the_same_training(keep):
    def alone(**others):
        rows = system("resnet34+alone", [0.1, 0.41], protocol="one-per-combination, zero-pad", **others)
        return rows[1:]

    plain = system("resnet34", [0.44]), system("resnet34", [0.46], epochs="100"), system("resnet34", [0.47], seeds="2")
    keep("shallow", *plain)
    results = keep("channels", alone(), alone(epochs="200"), system("prism4+off", [0.5]))
    page = study.channels(results)
    found = [(row["system"], row["epochs"], row["RGB"], row["RG"], row["minutes"]) for row in cells(page)]
    assert found == [
        ("`prism4+off`", "30", "50.0", "-", "10"),
        ("`resnet34+alone`", "30", "44.0", "41.0", "20"),
        ("`resnet34+alone`", "200", "-", "41.0", "10"),
    ]
    stamp = "`python -m train.run task2 --recipe strong --data mini50`: `bench/results/mini50/shallow/table.csv`"
    assert stamp in " ".join(page.split())
    own = system("resnet34+alone", [0.42], protocol="one-per-combination, zero-pad", seeds="0 1")
    assert [row["RGB"] for row in cells(study.channels(keep("channels-rgb", own)))] == ["50.0", "42.0", "-"]


def test_parts_are_differences_to_the_whole(keep):
    results = keep(
        "parts",
        system("prism4_small", [0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3]),
        system("prism4_small+static", [0.48, 0.41, 0.41, 0.41, 0.3, 0.3, 0.3], depth="6", distinct_layers="4"),
    )
    page = " ".join(study.parts(results).split())
    assert "| `--models prism4_small+static` | 48.0 | -2.0 | 41.0 | +1.0 | 30.0 | +0.0 | 30 |" in page
    assert "| `--models prism4_small` | 50.0 | - | 40.0 | - | 30.0 | - | 30 |" in page
    assert "`bench/results/mini50/parts/table.csv` (commit cccccccccccc); 2 cores of Some CPU, python 3.11.7, " in page
    assert "python 3.11.7, torch 2.15.0, torchvision 0.29.2." in page


def test_a_part_is_held_against_the_whole_of_its_seeds_and_schedule(keep):
    def flat(name, value, **others):
        return system(name, [value] * 7, **others)

    keep("parts", flat("prism4_small", 0.5), flat("prism4_small+static", 0.48))
    keep("parts-100", flat("prism4_small", 0.55, epochs="100"), flat("prism4_small+static", 0.54, epochs="100"))
    keep("parts-few", flat("prism4_small+few", 0.51))
    results = keep("parts-seeds", flat("prism4_small", 0.4, seeds="2"), flat("prism4_small+static", 0.43, seeds="2"))
    every = study.systems("parts", results)
    held = [(item, whole) for item in every if (whole := study.whole_of(item, every))]
    names = keeping.names_of_rows([item for item, _ in held], "30")
    expected = {
        "+static, seeds 0 1": -0.02,
        "100 epochs": 0.05,
        "+static, 100 epochs": -0.01,
        "+few": 0.01,
        "+static, seed 2": 0.03,
    }
    found = [item.mean("holdout", study.PAIRS) - whole.mean("holdout", study.PAIRS) for item, whole in held]
    assert dict(zip(names, found, strict=True)) == {name: pytest.approx(value) for name, value in expected.items()}
    page = study.parts(results)
    assert "| `--models prism4_small --epochs 100` | 55.0 | +5.0 |" in page
    assert "| `--models prism4_small --seed 2` | 40.0 | - |" in page
    page = study.parts(keep("parts-more", flat("prism4_small", 0.4, seeds="3 4")))
    assert "| `--models prism4_small --seed 3 --seeds 2` | 40.0 | - |" in page


def test_targets_are_judged_by_the_schedule_that_validation_prefers(keep):
    def validated(name, held_out, validation, **others):
        rows = system(name, [held_out], **others)
        return [*rows, rows[0] | {"split": "val", "accuracy": str(validation)}]

    keep("shallow", validated("resnet34", 0.40, 0.5, train_seconds="900"), validated("prism4", 0.43, 0.6))
    results = keep("shallow-100", validated("resnet34", 0.42, 0.6, epochs="100", train_seconds="1000"))
    sampled = [0.5, 0.49, 0.5, 0.48, 0.47, 0.46, 0.45]
    alone = system("naive_cnn", [*sampled[:-1], 0.46]), system("resnet34+alone", sampled[:-1])
    keep("channels", system("prism4", sampled), *alone)
    found = {row["what"]: (row["asked"], row["found"], row["met"]) for row in cells(targets.table(results))}
    alone = "the same: less `{}` for a combination alone, where it leads least"
    assert found == {
        "`prism4`: accuracy on RGB, of ResNet34's": ("≥ 105%", "102.4%", "no"),
        "`prism4_small`: the same": ("≥ 100%", "not measured yet", "-"),
        "`prism4_small`: parameters": ("≤ 500,000", "not measured yet", "-"),
        "`prism4`: training time, of ResNet34's": ("≤ 100%", "61.4%", "yes"),
        "`prism4`, one for all combinations: mean of pairs less RGB": ("≥ -1 points", "-1.0 points", "yes"),
        "the same: mean of singles less RGB": ("≥ -3 points", "-4.0 points", "no"),
        "the same: RGB less RGB without sampling": ("≥ 0 points", "not measured yet", "-"),
        alone.format("naive_cnn"): ("≥ 0 points", "-1.0 points", "no"),
        alone.format("resnet34+alone"): ("≥ 0 points", "+0.0 points; 1 of 7 not measured yet", "-"),
    }


def test_of_the_ways_to_draw_channels_that_counts_which_validation_prefers(keep):
    def drawn(name, held_out, validation):
        rows = system(name, held_out)
        return rows + [row | {"split": "val"} for row in system(name, validation)]

    # By validation on RGB alone, and by the held-out images, it would be prism4.
    keep("channels", drawn("prism4", [0.6] * 7, [0.5, *[0.4] * 6]), system("prism4+off", [0.51] * 7))
    results = keep("channels-few", drawn("prism4+few", [0.53, *[0.515] * 3, *[0.49] * 3], [0.48, *[0.44] * 6]))
    rows = {row["what"]: row["found"] for row in cells(targets.table(results))}
    assert rows["`prism4+few`, one for all combinations: mean of pairs less RGB"] == "-1.5 points"
    assert rows["the same: mean of singles less RGB"] == "-4.0 points"
    assert rows["the same: RGB less RGB without sampling"] == "+2.0 points"


def test_a_target_is_missed_by_one_combination_whatever_the_others_are(keep):
    results = keep("channels", system("prism4", [0.5] * 7), system("resnet34+alone", [0.4, 0.51]))
    rows = {row["what"]: (row["found"], row["met"]) for row in cells(targets.table(results))}
    what = "the same: less `{}` for a combination alone, where it leads least"
    assert rows[what.format("resnet34+alone")] == ("-1.0 points; 5 of 7 not measured yet", "no")
    assert rows[what.format("naive_cnn")] == ("not measured yet", "-")


def test_the_pictures_show_every_system_and_row(keep, monkeypatch):
    drawn = {}
    for name in ("channels", "parts"):
        monkeypatch.setattr(keeping, f"draw_{name}", lambda shown, path, name=name: drawn.update({name: shown}))
    whole = system("prism4_small", [0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3])
    keep("channels", whole, system("naive_cnn", [0.5, 0.4]))
    keep("channels-100", system("naive_cnn", [0.6], epochs="100"))
    keep("parts", whole, system("prism4_small+static", [0.48, 0.41, 0.41, 0.41, 0.3, 0.3, 0.3]))
    assert list(drawn["channels"]) == ["naive_cnn, 30 epochs", "naive_cnn, 100 epochs", "prism4_small"]
    assert drawn["channels"]["naive_cnn, 30 epochs"] == {"RGB": 0.5, "RG": 0.4}
    assert list(drawn["parts"]) == ["+static"]
    differences = {kind: pytest.approx(value) for kind, value in (("RGB", -0.02), ("pairs", 0.01), ("singles", 0.0))}
    assert {kind: difference for kind, (difference, _) in drawn["parts"]["+static"].items()} == differences
    deviation = (0.5 * 0.5 + 0.48 * 0.52) / 2500 / 2  # of two seeds
    assert drawn["parts"]["+static"]["RGB"][1] == pytest.approx(deviation**0.5)


def test_the_pictures_have_room_for_every_name(tmp_path):
    rows = {f"+row_with_a_name_{number}": {"RGB": (0.01 * number, 0.01)} for number in range(14)}
    keeping.draw_parts(rows, tmp_path / "parts.png")
    lines = {f"system_{number}+variant": {"RGB": 0.5, "R": 0.1 * number} for number in range(4)}
    keeping.draw_channels(lines, tmp_path / "channels.png")
    for name, least in (("parts", 700), ("channels", 400)):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.height > least
            assert len(picture.convert("RGB").resize((60, 60)).getcolors(3600)) > 10


def test_what_has_no_run_is_not_measured_yet(tmp_path):
    assert {table(tmp_path) for table in study.TABLES.values()} == {"Not measured yet."}


def test_the_gpu_script_trains_the_comparison_at_equal_epochs_and_keeps_its_files(tmp_path, monkeypatch):
    (step,) = listed.studies("DIR")
    assert step.arguments[:2] == ("-m", "bench.studies.comparison")
    tasks = []
    monkeypatch.setattr(contest.runs, "on_cores", lambda work, given: tasks.extend(given))
    monkeypatch.setattr(contest.runs, "check_machine", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert contest.main(list(step.arguments[2:])) == 0
    assert tasks == [(seed, name, "RGB") for seed in (0, 1) for name in contest.LONG]
    folder = tmp_path / step.arguments[step.arguments.index("--results") + 1] / contest.EQUAL_EPOCHS
    files = {folder / contest.TABLE, contest.predictions(folder, "prism4-seed0")}
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert {path for pattern in state.READ for path in tmp_path.glob(pattern)} == files


def test_other_names_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        keeping.main(["deep", str(tmp_path)], tmp_path)
    assert caught.value.code == 2
    assert "no study is named deep" in capsys.readouterr().err
