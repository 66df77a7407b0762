"""The first screen of a report: what came of a run in a sentence or two, and its accuracies as bars with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from polychrome.engine.errors import shown
from polychrome.engine.report import scores
from polychrome.engine.report.tables import Table, chosen_sizes

MOST_PANELS = 4  # models that have a panel of bars each
MOST_ROWS = 12  # combinations that have a bar each in a model's panel; of more, the numbers of channels kept have
STEP = 0.1  # the scale of bars ends at a multiple


@dataclass(frozen=True)
class Bar:
    """A row of a panel.

    Attributes:
        share: an accuracy from 0 to 1; None where it was not measured.
        interval: the 95% interval of the accuracy by the number of test images; None where the number is not known.
        spread: the standard deviation over seeds; None of one seed.
        is_summary: whether the accuracy stands for all rows of the panel.
    """

    name: str
    share: float | None
    interval: tuple[float, float] | None = None
    spread: float | None = None
    is_summary: bool = False

    @property
    def text(self) -> str:
        """The accuracy in %, with its deviation over seeds."""
        return scores.percent(self.share, self.spread)

    @property
    def highest(self) -> float:
        """The greatest value that is drawn of the bar: its own, or the end of its interval or deviation."""
        share = self.share or 0.0
        return max(share, share + (self.spread or 0.0), self.interval[1] if self.interval else 0.0)

    @property
    def ends(self) -> str:
        """The ends of the interval in %; empty without interval."""
        return "" if self.interval is None else "{:.1f}-{:.1f}".format(*(100 * end for end in self.interval))


@dataclass(frozen=True)
class Panel:
    """Bars that belong together: those of a model, or those of all models on the same channels.

    `place` is the model's among the models of the run, as in the run's other charts; 0 of a panel of all models.
    """

    title: str
    bars: tuple[Bar, ...]
    place: int = 0


@dataclass(frozen=True)
class Chart:
    """Panels side by side, all on the scale from 0 to `end`, with `chance` marked, see `scores.baseline`."""

    panels: tuple[Panel, ...]
    end: float
    chance: float
    note: str


@dataclass(frozen=True)
class _Model:
    """A model's accuracies: on all channels, the mean and the least over the combinations that all models have.

    `count` is the number of combinations, `images` that of test images, 0 where combinations have different numbers.
    """

    name: str
    full: Bar
    mean: Bar
    worst: Bar
    count: int
    images: int


def sentences(results: dict) -> str:
    """Return the verdict on a run: the most accurate model, the next, ResNet34 where it was trained too, and failures.

    Models are ranked by their mean accuracy over the combinations of channels that all were tested on.
    """
    models, failed = _ranked(results), list(results.get("failed", {}))
    none = "No choice of channels was tested with all models." if scores.labels(results) else "No model was tested."
    said = [*_on_accuracy(results, models)] if models else [none]
    if failed:
        said.append(f"{_listed(failed)} failed.")
    said += [
        f"{shown(name)} is a mean of {'seeds' if len(own) > 1 else 'seed'} {', '.join(map(str, own))} alone."
        for name, own in scores.lacking_seeds(results).items()
    ]
    return " ".join(said)


def chart(results: dict) -> Chart:
    """Return the accuracies of a run as bars; without a panel where nothing was tested."""
    models = _ranked(results)
    if len(scores.choices(results)) == 1:
        panels = [_on(results, models, label) for label in scores.labels(results)]
    elif len(models) > MOST_PANELS:
        panels = [
            Panel(
                f"Mean test accuracy over {models[0].count} choices of channels, %",
                tuple(replace(model.mean, name=shown(model.name)) for model in models),
            ),
            Panel(
                "Test accuracy on the worst of them, %",
                tuple(replace(model.worst, name=f"{shown(model.name)}: {model.worst.name}") for model in models),
            ),
        ]
    else:
        places = {name: place for place, name in enumerate(results["models"])}
        panels = [
            Panel(f"{shown(model.name)}: test accuracy, %", tuple(_rows(results, model)), places[model.name])
            for model in models
        ]
    chance, _ = scores.baseline(results)
    highest = max((bar.highest for panel in panels for bar in panel.bars), default=1.0)
    end = min(1.0, STEP * math.ceil(max(highest, chance) / STEP - 1e-9)) or 1.0
    return Chart(tuple(panels), end, chance, _note(results, panels))


def ranking(results: dict) -> Table:
    """Return a row per model, the best mean first: accuracy on all channels, mean with its interval, and worst."""
    models, count = _ranked(results), scores.how_many(results)
    several = len(scores.choices(results)) > 1
    summaries = (f"worst{count}", f"mean{count}") if several else ()
    heads = (scores.in_words(scores.full_set(results)), *summaries, "95% interval")
    rows = tuple(
        (
            model.name,
            model.full.text,
            *((f"{model.worst.text} ({model.worst.name})", model.mean.text) if several else ()),
            model.mean.ends or "-",
        )
        for model in models
    )
    return Table("Test accuracy, %", ("system", *heads), rows)


def by_combination(results: dict) -> bool:
    """Return whether the chart has a bar for every model's accuracy on every combination."""
    labels = scores.labels(results)
    return len(scores.choices(results)) == 1 or (len(results["models"]) <= MOST_PANELS and len(labels) <= MOST_ROWS)


def _on_accuracy(results: dict, models: Sequence[_Model]) -> Iterator[str]:
    tested, shared, best = scores.choices(results), scores.shared(results), models[0]
    several = len(shared) > 1
    of = f" of {best.images:,} test image{'s' * (best.images != 1)}" if best.images else " of the test images"
    if not several:
        ends = f" (95% interval {best.mean.ends})" if best.mean.interval else ""
        only = f", the only one of {len(tested)} choices of channels with all models" if len(tested) > 1 else ""
        yield f"{shown(best.name)} is right on {_percent(best.mean)}{of}{ends}, shown {best.worst.name}{only}."
    else:
        over = f"{best.count} choices of channels"
        if len(tested) > len(shared):
            over = f"the {best.count} of {len(tested)} choices of channels that all models were tested on"
        full = f"{_percent(best.full)} with {best.full.name}, " if best.full.share is not None else ""
        yield (
            f"{shown(best.name)} is right on {_percent(best.mean)}{of}, on average over {over}: {full}at worst "
            f"{_percent(best.worst)} ({best.worst.name})."
        )
    for following in models[1:2]:
        worst = f", at worst {_percent(following.worst)} ({following.worst.name})" if several else ""
        overlap = "; their intervals overlap" if _overlap(best.mean, following.mean) else ""
        yield f"Next is {shown(following.name)} with {_percent(following.mean)}{worst}{overlap}."
    full = scores.full_set(results)
    channels = f" on {shown(scores.in_words(full))}" if len(tested) > 1 else ""
    balanced = scores.score(results["models"][best.name], full, "balanced_accuracy")
    if balanced is not None and scores.differ(balanced, scores.score(results["models"][best.name], full)):
        always = scores.always(results)
        yield (
            f"Classes have different numbers of images: its balanced accuracy{channels} is {balanced:.1%}"
            f"{f', and {always}' if always else ''}."
        )
    yield from _against_resnet34(results, models)
    for model in models:
        if count := scores.no_class(results["models"][model.name]):
            yield (
                f"{shown(model.name)} has no class for {count:,.4g} test image{'s' * (count != 1)}"
                f"{', on average over the seeds' * (len(results.get('seeds', ())) > 1)}, as logits are not finite: "
                "counted as wrong."
            )
    poor = [model.name for model in models if scores.is_at_chance(results, results["models"][model.name], full)]
    if len(poor) == len(models):
        yield f"No model is clearly better than guessing{channels} ({100 / results['data']['classes']:.1f}%)."
    elif poor:
        yield f"Not clearly better than guessing{channels}: {_listed(poor)}."


def _against_resnet34(results: dict, models: Sequence[_Model]) -> Iterator[str]:
    """Yield what the best of the other models reaches of ResNet34's accuracy, where that was trained."""
    entries = results["models"]
    others = [model.name for model in models if scores.base(model.name) != "resnet34"]
    found = next((name for name in others if entries[name].get("ratio_to_resnet34")), None)
    compared = scores.resnet34(entries)
    params, reference = (entry.get("params") for entry in (entries.get(found, {}), compared))
    if found and params and reference:
        name = next(name for name, entry in entries.items() if entry is compared)
        ratio, channels = entries[found]["ratio_to_resnet34"], scores.in_words(scores.full_set(results))
        yield (
            f"{shown(found)} has {ratio:.1%} of the accuracy of {shown(name)} on {channels}, with "
            f"{params / reference:.1%} of its parameters."
        )


def _ranked(results: dict) -> list[_Model]:
    """Return the models that were tested, the best mean first."""
    found = []
    full, compared = scores.full_set(results), scores.compared(results)
    for name, mean in scores.ranked(results).items():
        entry, accuracies = results["models"][name], compared[name]
        least = min(accuracies, key=accuracies.get)
        images = {scores.tested_on(results, entry, label) for label in accuracies}
        spread = scores.number(entry.get("spread", {}).get("mean"))
        bars = _bar(results, entry, full), _interval_of("mean", mean, min(images), spread), _bar(results, entry, least)
        found.append(_Model(name, *bars, len(accuracies), min(images) if len(images) == 1 else 0))
    return found


def _on(results: dict, models: Sequence[_Model], label: str) -> Panel:
    """Return a panel of all models on a combination, the best first."""
    bars = [replace(_bar(results, results["models"][model.name], label), name=shown(model.name)) for model in models]
    bars.sort(key=lambda bar: -1 if bar.share is None else bar.share, reverse=True)
    return Panel(f"Test accuracy on {shown(scores.in_words(label))}, %", tuple(bars))


def _rows(results: dict, model: _Model) -> Iterator[Bar]:
    """Yield the bars of a model's panel: mean and worst, then each combination or number of channels kept."""
    entry, labels = results["models"][model.name], scores.labels(results)
    yield replace(model.mean, name=f"mean of {model.count}", is_summary=True)
    yield replace(model.worst, name=f"worst: {model.worst.name}", is_summary=True)
    if len(labels) <= MOST_ROWS:
        for label in labels:
            yield _bar(results, entry, label)
        return
    accuracies = scores.compared(results)[model.name]
    images = min(scores.tested_on(results, entry, label) for label in accuracies)
    sizes = scores.by_size(results, accuracies)
    for size in chosen_sizes(sizes):
        yield _interval_of(f"{size} channel{'s' * (size != 1)}", scores.mean(sizes[size]), images)


def _bar(results: dict, entry: dict, label: str) -> Bar:
    spread = entry.get("spread", {}).get("plain", {}).get("test", {}).get(label, {}).get("accuracy")
    images = scores.tested_on(results, entry, label)
    return _interval_of(shown(scores.in_words(label)), scores.score(entry, label), images, scores.number(spread))


def _interval_of(name: str, share: float | None, images: int, spread: float | None = None) -> Bar:
    return Bar(name, share, scores.interval(share, images) if images and share is not None else None, spread)


def _note(results: dict, panels: Sequence[Panel]) -> str:
    entries = results["models"].values()
    counts = {scores.tested_on(results, entry, label) for entry in entries for label in scores.of_split(entry)} or {0}
    numbers = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    parts = [f"Lines: 95% intervals by the number of test images, n = {numbers}." if max(counts) else ""]
    seeds = len(results.get("seeds", ()))
    most = "up to " * bool(scores.lacking_seeds(results))
    parts.append(f"± and thick lines: standard deviation over {most}{seeds} seeds." if seeds > 1 else "")
    if count := scores.how_many(results):
        parts.append(f"Mean and worst{count}: of the choices of channels that all models were tested on.")
    parts.append(f"Dotted: {scores.always(results) or scores.CHANCE}.")
    return " ".join(filter(None, parts)) if panels else ""


def _overlap(one: Bar, other: Bar) -> bool:
    if one.interval is None or other.interval is None:
        return False
    return max(one.interval[0], other.interval[0]) <= min(one.interval[1], other.interval[1])


def _percent(bar: Bar) -> str:
    return "-" if bar.share is None else f"{100 * bar.share:.1f}%"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names))
