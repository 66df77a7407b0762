"""The first screen of a report: the verdict in words, and the bars with their intervals."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from polychrome.engine.metrics import Scorer
from polychrome.engine.report import pages, scores, seeds, tables, verdict
from polychrome.train import messages
from polychrome.train.results import add_ratio
from tests.engine.test_report import channels48, entry, results_of, task1, task2

ONE = {"RGB": ["R", "G", "B"]}
TWO = {"RGB": ["R", "G", "B"], "R": ["R"]}


def bars_of(results):
    return {panel.title: panel.bars for panel in verdict.chart(results).panels}


def test_the_best_mean_is_named_first_with_its_best_known_and_its_worst_choice_of_channels():
    results = results_of(
        {"narrow": entry({"RGB": 0.6, "R": 0.1}), "broad": entry({"RGB": 0.5, "R": 0.4})}, TWO
    )  # fmt: skip
    assert verdict.sentences(results) == (
        "broad is right on 45.0% of 450 test images, on average over 2 choices of channels: 50.0% with RGB, at worst "
        "40.0% (R). Next is narrow with 35.0%, at worst 10.0% (R)."
    )


def test_a_run_on_one_choice_of_channels_is_told_with_its_interval():
    results = results_of({"one": entry({"RGB": 0.5})}, ONE)
    assert verdict.sentences(results) == (
        "one is right on 50.0% of 450 test images (95% interval 45.4-54.6), shown RGB."
    )


@pytest.mark.parametrize(("second", "overlaps"), [(0.48, True), (0.42, True), (0.40, False)])
def test_models_whose_intervals_overlap_are_said_to(second, overlaps):
    results = results_of({"a": entry({"RGB": 0.5}), "b": entry({"RGB": second})}, ONE)
    low, high = scores.interval(0.5, 450)[0], scores.interval(second, 450)[1]
    assert (low <= high) == overlaps
    assert ("their intervals overlap" in verdict.sentences(results)) == overlaps


def test_what_a_network_reaches_of_resnet34_is_said_with_its_size():
    assert verdict.sentences(task2()).endswith(
        "attention_cnn has 92.0% of the accuracy of resnet34 on RGB, with 2.1% of its parameters."
    )


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ((0.02, 0.03), "No model is clearly better than guessing (2.0%)."),
        ((0.5, 0.03), "Not clearly better than guessing: b."),
        ((0.5, 0.06), ""),
    ],
)
def test_models_at_chance_are_named(accuracies, said):
    found = results_of({name: entry({"RGB": share}) for name, share in zip("ab", accuracies, strict=True)}, ONE)
    assert ("guessing" in verdict.sentences(found)) == bool(said)
    assert verdict.sentences(found).endswith(said)


def test_failed_models_are_named_also_where_all_failed():
    assert verdict.sentences(results_of({}, failed={"rrdb": "no"})) == "No model was tested. rrdb failed."
    assert verdict.chart(results_of({}, failed={"rrdb": "no"})).panels == ()


def test_a_panel_has_mean_and_worst_first_and_a_bar_for_each_choice_of_channels():
    results = task1()
    results["models"] = {name: results["models"][name] for name in ("simple_cnn", "pool_attention_cnn")}
    panels = bars_of(results)
    assert list(panels) == ["pool_attention_cnn: test accuracy, %", "simple_cnn: test accuracy, %"]
    bars = panels["simple_cnn: test accuracy, %"]
    assert [(bar.name, bar.text) for bar in bars] == [
        ("mean of 7", "10.3"), ("worst: B", "2.7"), ("RGB", "35.0"), ("RG", "9.0"), ("GB", "8.5"), ("RB", "7.6"),
        ("R", "6.0"), ("G", "3.6"), ("B", "2.7"),
    ]  # fmt: skip
    assert [bar.is_summary for bar in bars] == [True, True] + [False] * 7
    assert all(bar.interval == scores.interval(bar.share, 450) for bar in bars)
    assert verdict.chart(results).note == (
        "Lines: 95% intervals by the number of test images, n = 450. Dotted: chance."
    )
    assert verdict.by_combination(results)


def test_more_models_are_ranked_by_mean_and_their_worst_stand_beside():
    results = task1()
    mean, worst = verdict.chart(results).panels
    assert not verdict.by_combination(results)
    shares = [bar.share for bar in mean.bars]
    assert shares == sorted(shares, reverse=True)
    assert [bar.name for bar in mean.bars] == [bar.name.partition(":")[0] for bar in worst.bars]
    assert (mean.bars[0].text, worst.bars[0].name) == ("62.3", "dwg_densenet121+shuffle: B")
    assert worst.bars[0].share == min(scores.by_combination(results["models"]["dwg_densenet121+shuffle"]).values())


def test_the_bars_of_many_channels_are_by_the_number_kept_and_as_in_the_table():
    results = channels48()
    bars = {bar.name: bar.text for bar in bars_of(results)["model_0: test accuracy, %"]}
    table = tables.channels_kept_in_short(results)
    row = next(row for row in table.rows if row[0] == "model_0")
    kept = {f"{size} channel{'s' * (size != '1')}": text for size, text in zip(table.columns[1:], row[1:], strict=True)}
    assert kept.items() <= bars.items()
    assert len(bars) == len(kept) + 2


@pytest.mark.parametrize("make", [task1, task2, channels48, lambda: channels48(6)])
def test_no_bar_and_no_interval_reaches_beyond_the_scale(make):
    chart = verdict.chart(make())
    assert 0 < chart.end <= 1
    assert chart.end * 10 == pytest.approx(round(chart.end * 10))
    for panel in chart.panels:
        assert max(bar.interval[1] for bar in panel.bars) <= chart.end + 1e-9
    assert max(bar.interval[1] for panel in chart.panels for bar in panel.bars) > chart.end - verdict.STEP - 1e-9


@pytest.mark.parametrize(
    ("share", "classes", "spread", "end"), [(0.2, 2, None, 0.5), (0.41, 50, 0.3, 0.8), (0.5, 50, None, 0.6)]
)
def test_chance_and_deviations_are_within_the_scale_too(share, classes, spread, end):
    """A model worse than guessing must not seem to reach chance, whose line would stand at the end of the scale."""
    results = results_of({"a": entry({"RGB": share})}, ONE)
    results["data"]["classes"] = classes
    if spread:
        results["models"]["a"]["spread"] = {"plain": {"test": {"RGB": {"accuracy": spread}}}, "mean": spread}
    chart = verdict.chart(results)
    assert chart.end == pytest.approx(end)
    assert chart.chance <= chart.end


def test_several_seeds_have_their_deviation_beside_the_interval():
    runs = []
    for seed, more in enumerate((0.0, 0.02, 0.04)):
        runs.append(results_of({"a": entry({"RGB": 0.5 + more, "R": 0.3 + 2 * more})}, TWO, seed=seed))
    results = seeds.combined(runs)
    mean, worst, full, _ = bars_of(results)["a: test accuracy, %"]
    assert (full.text, worst.text, mean.text) == ("52.0 ± 2.0", "34.0 ± 4.0", "43.0 ± 3.0")
    assert full.interval == scores.interval(full.share, 450)
    assert "± and thick lines: standard deviation over 3 seeds." in verdict.chart(results).note


def test_a_score_that_is_missing_has_no_bar_and_is_in_no_mean():
    results = results_of({"a": entry({"RGB": 0.5, "RG": None, "R": 0.3})}, TWO | {"RG": ["R", "G"]})
    bars = {bar.name: bar for bar in bars_of(results)["a: test accuracy, %"]}
    assert bars["RG"].text == "-"
    assert bars["RG"].interval is None
    assert next(iter(bars.values())).share == pytest.approx(0.4)


def test_intervals_are_of_the_images_that_have_the_channels():
    """Images of sensors that differ: each combination is tested on the images that have it, a mean on the fewest."""
    results = results_of({"a": entry({"RGB": 0.5, "R": 0.3})}, TWO)
    for label, count in (("RGB", 60), ("R", 300)):
        results["models"]["a"]["scores"]["test"][label]["images"] = count
    mean, _, full, alone = bars_of(results)["a: test accuracy, %"]
    assert full.interval == scores.interval(0.5, 60)
    assert alone.interval == scores.interval(0.3, 300)
    assert mean.interval == scores.interval(0.4, 60)
    assert "n = 60 to 300" in verdict.chart(results).note
    assert verdict.sentences(results).startswith("a is right on 40.0% of the test images, on average over 2 choices")


def test_a_mean_says_over_how_many_choices_of_channels_it_is():
    results = results_of({"a": entry({"RGB": 0.5, "R": 0.3}), "b": entry({"RGB": 0.3})}, TWO)
    first, second = (bars[0] for bars in bars_of(results).values())
    assert [(bar.name, bar.text) for bar in (first, second)] == [("mean of 1", "50.0"), ("mean of 1", "30.0")]
    assert (
        "Mean and worst of 1: of the choices of channels that all models were tested on." in verdict.chart(results).note
    )
    del results["models"]["b"]
    (bars,) = bars_of(results).values()
    assert (bars[0].name, bars[0].text) == ("mean of 2", "40.0")


def test_balanced_accuracy_is_in_the_verdict_where_classes_are_unequal():
    """A model that always says the commonest class is right on many images."""
    results = results_of({"a": entry({"RGB": 0.9})}, ONE)
    results["models"]["a"]["scores"]["test"]["RGB"]["balanced_accuracy"] = 0.02
    said = verdict.sentences(results)
    assert "Classes have different numbers of images: its balanced accuracy is 2.0%." in said
    assert said.endswith("No model is clearly better than guessing (2.0%).")


def test_unknown_numbers_of_images_leave_bars_without_intervals():
    results = results_of({"a": entry({"RGB": 0.5, "R": 0.3})}, TWO)
    results["data"]["test"] = 0
    chart = verdict.chart(results)
    assert {bar.interval for panel in chart.panels for bar in panel.bars} == {None}
    assert chart.note == "Dotted: chance."
    assert verdict.sentences(results).startswith("a is right on 40.0% of the test images, on average over 2 choices")


def test_the_ranking_has_the_figures_of_the_bars():
    table = verdict.ranking(task1())
    assert table.columns == ("system", "RGB", "worst", "mean", "95% interval")
    assert table.rows[0] == ("dwg_densenet121+shuffle", "68.0", "55.0 (B)", "62.3", "57.7-66.6")
    bars = verdict.chart(task1()).panels[0].bars
    assert [row[3] for row in table.rows] == [bar.text for bar in bars]


def test_a_mean_of_shuffled_channels_alone_is_of_them():
    results = results_of({"a": entry({"shuffled": 0.4})}, {"shuffled": []})
    (bars,) = bars_of(results).values()
    assert bars == (replace(bars[0], name="a", share=0.4),)


@pytest.mark.parametrize("name", ["a\x1b[31mb", "<b>a</b>", "a" * 200])
def test_names_are_shown_as_they_are(name):
    results = results_of({name: entry({"RGB": 0.5, "R": 0.3})}, TWO)
    assert "\x1b" not in verdict.sentences(results) + next(iter(bars_of(results)))


def test_images_without_a_class_are_told_and_stand_in_the_table():
    broken, whole = entry({"RGB": 0.5, "R": 0.4}), entry({"RGB": 0.6, "R": 0.4})
    for label, count in (("RGB", 3), ("R", 1200)):
        broken["scores"]["test"][label]["no_class"] = count
        whole["scores"]["test"][label]["no_class"] = 0
    said = verdict.sentences(results_of({"a": broken, "b": whole}, TWO))
    assert "a has no class for 1,200 test images, as logits are not finite: counted as wrong." in said
    assert "b has no class" not in said
    table = tables.combinations("a", broken)
    assert table.columns[-1] == "no class"
    assert [row[-1] for row in table.rows] == ["3", "1,200"]
    assert "no class" not in tables.combinations("b", whole).columns


def guessing(seen, images=(990, 10)):
    """Return a run of one model on two classes, right on some images of each, with what the scorer finds of it."""
    scorer = Scorer(2, torch.device("cpu"))
    labels = torch.tensor([0] * images[0] + [1] * images[1])
    right = torch.cat([torch.arange(count) < hits for hits, count in zip(seen, images, strict=True)])
    scorer.update(torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).float(), labels)
    results = results_of({"m": entry({}) | {"scores": {"test": {"RGB": scorer.compute().as_dict()}}}}, ONE)
    results["data"] |= {"classes": 2, "test": sum(images)}
    return results


@pytest.mark.parametrize(("seen", "is_at_chance"), [((980, 1), True), ((495, 7), True), ((980, 8), False)])
def test_a_model_of_unequal_classes_is_held_against_guessing_and_the_most_frequent_class(seen, is_at_chance, tmp_path):
    results = guessing(seen)
    said, balanced = verdict.sentences(results), (seen[0] / 990 + seen[1] / 10) / 2
    assert (
        f"Classes have different numbers of images: its balanced accuracy is {balanced:.1%}, and always answering the "
        "most frequent class is right on 99.0%." in said
    )
    assert said.endswith("No model is clearly better than guessing (50.0%).") == is_at_chance
    chart = verdict.chart(results)
    assert chart.chance == pytest.approx(0.99)
    assert chart.note.endswith("Dotted: always answering the most frequent class is right on 99.0%.")
    lines = messages.at_end(results, SimpleNamespace(root=tmp_path, html=tmp_path / "report.html", seeds={}))
    told = (
        "m is not clearly better than chance, 50.0% for 2 classes (always answering the most frequent class is right "
        "on 99.0%): try more --epochs, "
    )
    assert any(line.startswith(told) for line in lines) == is_at_chance


def test_of_equal_classes_chance_is_the_line_to_beat():
    results = guessing((90, 80), (100, 100))
    assert scores.baseline(results) == (0.5, "chance")
    assert verdict.chart(results).note.endswith("Dotted: chance.")


def test_the_most_frequent_class_is_that_of_the_channels_named_where_images_differ():
    results = guessing((980, 1))
    results["models"]["m"]["scores"]["test"]["R"] = guessing((5, 5), (6, 6))["models"]["m"]["scores"]["test"]["RGB"]
    assert scores.always(results) == "always answering the most frequent class on RGB is right on 99.0%"


def scored(accuracy, images=10, balanced=None, **more):
    """Return the scores of an entry on a combination."""
    shares = {"accuracy": accuracy, "balanced_accuracy": accuracy if balanced is None else balanced}
    return shares | {"images": images, "no_class": 0, "guessed": 0.3, "largest_class": 0.25} | more


def told(models, **more):
    """Return the verdict on scores by model and combination, of four classes."""
    labels = {label: list(label) for scores in models.values() for label in scores}
    data = {"classes": 4, "class_names": list("abcd"), "test": 10, "root": "x"}
    entries = {name: {"scores": {"test": scores}, "params": 10} for name, scores in models.items()}
    return {"task": "t", "seed": 0, "data": data, "combinations": labels, "models": entries, "failed": {}} | more


def test_a_model_is_called_poor_on_the_channels_that_it_is_poor_on():
    said = verdict.sentences(told({"a": {"RGB": scored(0.2), "R": scored(0.9)}}))
    assert said.endswith("No model is clearly better than guessing on RGB (25.0%).")
    said = verdict.sentences(
        told({"a": {"RGB": scored(0.2), "R": scored(0.9)}, "b": {"RGB": scored(0.8), "R": scored(1)}})
    )
    assert said.endswith("Not clearly better than guessing on RGB: a.")


def test_classes_that_differ_on_some_channels_alone_are_not_said_to_differ_on_all():
    assert "Classes have" not in verdict.sentences(told({"a": {"RGB": scored(0.5), "R": scored(0.6, 6, 0.4)}}))
    said = verdict.sentences(told({"a": {"RGB": scored(0.6, 10, 0.4), "R": scored(0.5)}}))
    assert "Classes have different numbers of images: its balanced accuracy on RGB is 40.0%." in said


def test_a_variant_of_resnet34_that_others_are_compared_with_is_named():
    results = told({"resnet34+drop": {"RGB": scored(0.5)}, "a": {"RGB": scored(0.6)}})
    add_ratio(results)
    assert "a has 120.0% of the accuracy of resnet34+drop on RGB, with 100.0%" in verdict.sentences(results)


def test_a_single_image_is_one_image():
    assert verdict.sentences(told({"a": {"RGB": scored(1.0, 1)}})).startswith("a is right on 100.0% of 1 test image (")


def test_a_model_that_lacks_seeds_is_a_mean_of_the_others_and_that_is_said():
    runs = [
        told({"a": {"RGB": scored(0.5 + 0.1 * seed)}, "b": {"RGB": scored(0.6, no_class=seed)}}) for seed in range(3)
    ]
    runs = [run | {"seed": seed} for seed, run in enumerate(runs)]
    whole = seeds.combined([copy.deepcopy(run) for run in runs])
    assert "alone" not in verdict.sentences(whole)
    assert "b has no class for 1 test image, on average over the seeds, as logits" in verdict.sentences(whole)
    assert "standard deviation over 3 seeds" in verdict.chart(whole).note
    del runs[1]["models"]["b"]
    runs[1]["failed"] = {"b": "out of memory"}
    some = seeds.combined(runs)
    assert verdict.sentences(some).endswith("b is a mean of seeds 0, 2 alone.")
    assert "standard deviation over up to 3 seeds" in verdict.chart(some).note
    assert pages._runs(some) == "Means of 3 runs, seeds 0, 1, 2. A model that failed with some has means of the others."
