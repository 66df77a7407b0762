"""Whether a form of the flagship earns its place: trained as its trials found, decided on the images of the trials."""

import lzma

import pytest

from bench.studies import forms, trials
from bench.studies.forms import Form
from bench.studies.trials import Choice
from polychrome.train.settings.config import read_toml

pytestmark = pytest.mark.usefixtures("native")

COSTS = 130, 421_362, 55_000_000, 4, 1200.0
ROW = Form("prism4_small", "plain", 0, 0.02, 0.1, 1, *COSTS, "0123456789ab", "C, python 3.11")


def keep(results, row, right, images=500):
    path = row.predictions(results / forms.FOLDER)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"test,{number:03},1,{int(number < right)},1" for number in range(images))
    path.write_bytes(lzma.compress(("\n".join(["split,image,label,RGB,RGB flipped", *lines]) + "\n").encode()))


def test_forms_are_of_the_best_trial_s_network_and_choice():
    best = "prism4_small", Choice(lr=0.02, strength=1), ROW.epochs
    forms.check_choices([ROW], *best)
    for place, other in enumerate(("prism4", Choice(strength=1), ROW.epochs + 1)):
        with pytest.raises(ValueError, match=r"plain of seed 0 was trained by .* and the best trial is now"):
            forms.check_choices([ROW], *best[:place], other, *best[place + 1 :])


def test_no_seed_is_a_trial_s():
    assert 0 not in forms.SEEDS


def test_the_table_says_what_a_form_brings_over_the_plain_one(tmp_path):
    assert forms.table(tmp_path) == "Not measured yet."
    rows = [Form(*(ROW.network, form, seed), *list(vars(ROW).values())[3:]) for form in forms.FORMS for seed in (0, 1)]
    forms.write(rows[::-1], tmp_path)
    assert forms.read(tmp_path) == rows
    for row in rows:
        keep(tmp_path, row, {"plain": 240, "gates": 240, "dynamic": 290}[row.form] + 10 * row.seed)
    lines = [line.strip("| ").split(" | ") for line in forms.table(tmp_path).splitlines() if line.startswith("|")]
    assert forms.table(tmp_path).startswith("3 of 9 runs are missing: not final.")
    plain, gates, dynamic = (dict(zip(lines[0], line, strict=True)) for line in lines[2:])
    assert plain["deciding"] == gates["deciding"] == "49.0 ± 1.4"
    assert plain["less plain"] == "-"
    assert gates["less plain"].startswith("+0.0 (")
    assert dynamic["less plain"].startswith("+10.0 (")
    assert dynamic["less plain"].endswith("; p < 0.001)")
    assert (plain["parameters"], plain["minutes"], plain["seeds"]) == ("421,362", "20", "0 1")


def test_every_form_of_both_flagships_is_described():
    described = read_toml(forms.CONFIG)["model"]
    wanted = {f"{network}+{form}" for network in trials.FLAGSHIPS for form in forms.FORMS if form != forms.PLAIN}
    assert set(described) == wanted


@pytest.mark.slow
def test_forms_are_trained_as_the_trials_found_and_not_again(tmp_path, stripes, monkeypatch):
    for name, value in {"HELD_OUT": 12, "DECIDING": 9, "PROBED": 24, "FLAGSHIPS": ("prism4_small",)}.items():
        monkeypatch.setattr(trials, name, value)
    about = {"accuracy": 0.5, "flipped": 0.5, "train_seconds": 1.0, "commit": "a", "machine": "m"}
    choice = vars(trials.Choice(lr=0.02)).values()
    count = range(1, trials.TRIALS + 1)
    trials.write(
        [trials.Trial("prism4_small", "RGB", number, *choice, 3, 0.001, **about) for number in count], tmp_path
    )
    start = ["--data", str(stripes), "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(forms, "SEEDS", (1,))
    assert forms.main(start, tmp_path) == 0
    rows = forms.read(tmp_path)
    assert [(row.form, row.epochs) for row in rows] == [("plain", 3), ("gates", 3), ("dynamic", 3)]
    assert rows[0].params < rows[1].params < rows[2].params
    before = forms.table(tmp_path)
    monkeypatch.setattr(forms, "train", lambda *_: pytest.fail("trained again"))
    assert forms.main(start, tmp_path) == 0
    assert forms.table(tmp_path) == before
