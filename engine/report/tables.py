"""The tables of a report, built once and shown alike on the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from polychrome.engine.channels.names import SENSOR, SHUFFLED, listed
from polychrome.engine.data.accounting import Account
from polychrome.engine.errors import shown
from polychrome.engine.report import scores

# Of more sizes than this, a table shows a choice.
MOST_SIZES = 16
# How many of the best and of the worst single channels are shown.
EXTREMES = 5


@dataclass(frozen=True)
class Table:
    """Title, column heads and rows of text; the first `left` columns are left-aligned, the others right.

    All text is as `engine.errors.shown` returns it: a table may have names that others gave to files and channels.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def __post_init__(self):
        object.__setattr__(self, "title", shown(self.title))
        object.__setattr__(self, "columns", tuple(map(shown, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(shown, row)) for row in self.rows))

    def without(self, unwanted: Callable[[str], bool]) -> Table:
        """Return the table without the columns whose heads are unwanted."""
        return self.picked([index for index, head in enumerate(self.columns) if not unwanted(head)])

    def picked(self, columns: Sequence[int]) -> Table:
        """Return the table with some of its columns, by their numbers in ascending order."""
        rows = tuple(tuple(row[index] for index in columns) for row in self.rows)
        left = sum(index < self.left for index in columns)
        return Table(self.title, tuple(self.columns[index] for index in columns), rows, left)


# Column head -> score, of columns that a narrow terminal leaves out.
MORE = {"top 5": "top5_accuracy", "ECE": "calibration_error"}
# Column head -> text of the figure in a model's entry of `results.json`; `full` is the combination of all channels.
FIGURES: dict[str, Callable[[dict, str], str]] = {
    "reported": lambda entry, full: _reported_figures(entry, full),
    "acc.": lambda entry, full: _share(scores.score(entry, full)),
    "balanced": lambda entry, full: _balanced(entry, full),
    "precision": lambda entry, full: _share(scores.score(entry, full, "precision")),
    "recall": lambda entry, full: _share(scores.score(entry, full, "recall")),
    "F1": lambda entry, full: _share(scores.score(entry, full, "f1")),
    "top 5": lambda entry, full: _share(scores.score(entry, full, MORE["top 5"])),
    "ECE": lambda entry, full: _share(scores.score(entry, full, MORE["ECE"])),
    "val acc.": lambda entry, full: _share(scores.validation(entry, full).get("accuracy")),
    "ratio": lambda entry, full: _share(entry.get("ratio_to_resnet34")),
    "params": lambda entry, full: _number(entry.get("params"), ","),
    "mult-adds": lambda entry, full: _large(entry.get("macs")),
    "FLOPs": lambda entry, full: _large(entry.get("flops")),
    "act. MB": lambda entry, full: _number(entry.get("activation_mb"), ",.2f"),
    "protocol": lambda entry, full: entry.get("protocol", "-"),
    "sampling": lambda entry, full: _sampling(entry),
    "augmentations": lambda entry, full: ", ".join(entry.get("augmentations", ())) or "-",
    "depth": lambda entry, full: _number(entry.get("depth"), ","),
    "distinct": lambda entry, full: _number(entry.get("distinct_layers"), ","),
    "best": lambda entry, full: f"{_number(entry.get('best_epoch'), ',')}/{_number(entry.get('epochs'), ',')}",
    "val loss": lambda entry, full: _number(entry.get("val", {}).get("loss"), ".3f"),
    "train time": lambda entry, full: _duration(entry.get("train_seconds")),
    "img/s": lambda entry, full: _number(entry.get("images_per_second"), ",.0f"),
    "peak MB": lambda entry, full: _number(entry.get("peak_memory_mb"), ",.0f"),
    "GPU idle": lambda entry, full: _share(entry.get("gpu_idle")),
    "input wait": lambda entry, full: _share(entry.get("input_wait")),
}


def combinations(name: str, entry: dict, split: str = "test") -> Table:
    """Return one model's scores on a split by channel combination.

    Top-5 accuracy and calibration error (`MORE`) are shown where they are known, the images of each where these differ,
    images without a class where there are some.
    """
    alone = {"models": {name: entry}}
    kinds, images = (*scores.kinds(alone, split), "precision", "recall", "f1"), scores.images(alone, split)
    some_without, every = scores.no_class(entry, split) > 0, scores.of_split(entry, split)
    more = [head for head, kind in MORE.items() if any(kind in row for row in every.values())]
    rows = tuple(
        (
            channels,
            *(_share(row.get(kind)) for kind in kinds),
            *(_share(row.get(MORE[head])) for head in more),
            _number(row.get("loss"), ".3f"),
            *([_number(images.get(channels), ",")] if images else ()),
            *([_number(row.get("no_class"), ",.4g")] if some_without else ()),
        )
        for channels, row in every.items()
    )
    names = ("F1" if kind == "f1" else kind.removesuffix("_accuracy") for kind in kinds)
    last = (*(["images"] if images else ()), *(["no class"] if some_without else ()))
    heads = ("channels", *names, *more, "loss", *last)
    return Table(f"{name} ({entry.get('protocol', '-')})", heads, rows)


def accuracies(entries: dict[str, dict], split: str = "test", kind: str = "accuracy") -> Table:
    """Return the accuracy of all models by channel combination, models as rows or as columns, whichever is narrower.

    `kind` may be "balanced_accuracy", as in other tables. Where combinations were tested on different numbers of
    images, these are among the rows or columns, too.
    """
    labels, images = scores.labels({"models": entries}, split), scores.images({"models": entries}, split)
    rows = tuple(
        (name, *(scores.percent(scores.score(entry, label, kind, split)) for label in labels))
        for name, entry in entries.items()
    )
    if images:
        rows += (("images", *(_number(images.get(label), ",") for label in labels)),)
    return _narrower(Table(f"{split.capitalize()} {_named(kind)}, %", ("system", *labels), rows), "channels")


def channels_kept(results: dict, kind: str = "accuracy") -> Table:
    """Return mean, least and greatest test accuracy over the combinations of the same size, by model."""
    sizes_of = scores.sizes(results, kind=kind)
    every = sorted({size for sizes in sizes_of.values() for size in sizes}, reverse=True)
    sizes = every if len(every) <= MOST_SIZES else [size for size in every if _is_round(size) or size == every[0]]
    rows = tuple((name, *(_spread(found.get(size, ())) for size in sizes)) for name, found in sizes_of.items())
    choice = "" if sizes == every else f", {len(sizes)} of {len(every)} sizes"
    title = f"Test {_named(kind)}, %, by number of channels kept: mean (least-greatest){choice}"
    return _narrower(Table(title, ("system", *map(str, sizes)), rows if sizes else ()), "kept")


def channels_kept_in_short(results: dict, split: str = "test", kind: str = "accuracy") -> Table:
    """Return mean accuracy by the number of channels kept, a row per model, for the terminal."""
    sizes_of = scores.sizes(results, split, kind)
    every = sorted({size for sizes in sizes_of.values() for size in sizes}, reverse=True)
    sizes = chosen_sizes(every)
    rows = (
        (name, *(scores.percent(scores.mean(found.get(size, ()))) for size in sizes))
        for name, found in sizes_of.items()
    )
    title = f"Mean {split} {_named(kind)}, %, by number of channels kept"
    return Table(title, ("system", *map(str, sizes)), tuple(rows) if sizes else ())


def chosen_sizes(sizes: Iterable[int]) -> list[int]:
    """Return up to six sizes, or else the powers of two among them and the largest; the largest first."""
    every = sorted(sizes, reverse=True)
    return [size for size in every if len(every) <= 6 or size & (size - 1) == 0 or size == every[0]]


def single_channels(results: dict) -> Table:
    """Return each model's best and worst single channels with their accuracies, by rank."""
    ranked = {name: scores.singles(results, entry) for name, entry in results["models"].items()}
    count = max(map(len, ranked.values()), default=0)
    ranks = [rank for rank in range(count) if rank < EXTREMES or rank >= count - EXTREMES]
    rows = tuple(
        (
            str(rank + 1),
            *(
                f"{found[rank][0]} ({_share(found[rank][1])})" if rank < len(found) else "-"
                for found in ranked.values()
            ),
        )
        for rank in ranks
    )
    title = "Single channels by test accuracy" + (", the best and the worst" if len(ranks) < count else "")
    return Table(title, ("rank", *ranked), rows)


def models(results: dict) -> Table:
    """Return a row per model: accuracy, the ratio to ResNet34's where ResNet34 was trained too, and costs."""
    with_ratio = any("ratio_to_resnet34" in entry for entry in results["models"].values())
    on = f", tested on {scores.in_words(scores.full_set(results))}" if scores.how_many(results) else ""
    title = f"Models{on}" + (" (ratio: of test accuracy to ResNet34's)" if with_ratio else "")
    return _select(results, title, ("acc.", "balanced", "ratio", "params", "mult-adds", "best", "train time"))


def systems(results: dict) -> Table:
    """Return a row per trained system: reported figures, measured figures on the full set, and costs."""
    measured = ("reported", "acc.", "balanced", "top 5", "precision", "recall", "F1", "ECE", "val acc.", "ratio")
    costs = ("params", "mult-adds", "FLOPs", "act. MB", "train time")
    return _select(results, f"Systems, tested on {scores.in_words(scores.full_set(results))}", measured + costs)


def training(results: dict) -> Table:
    """Return a row per trained system: settings, course and speed of its training."""
    text, numbers = (
        ("protocol", "sampling", "augmentations"),
        ("depth", "distinct", "best", "val loss", "img/s", "peak MB", "GPU idle", "input wait"),
    )
    return _select(results, "Training", text + numbers)


def settings(results: dict) -> Table:
    """Return what systems were trained with that differs from the settings of the run, a row for each setting."""
    rows = (tuple(row) for entry in results["models"].values() for row in entry.get("differs", ()))
    return Table("Trained with other settings", ("system", "setting", "trained with"), tuple(rows), left=3)


def reported(results: dict) -> Table:
    """Return the figures of the reports' tables, each system's with the measured figures of the same kinds below."""
    labels = scores.labels(results)
    extra = [key for key in (SHUFFLED, "val", "train", "precision", "recall", "f1") if key not in labels]
    entries = {name: entry for name, entry in results["models"].items() if _has_measured(entry)}
    given = {
        name: {key for figures in entry["reported"].values() for key in figures} for name, entry in entries.items()
    }
    columns = [key for key in labels + extra if any(key in keys for keys in given.values())]
    rows = []
    for name, entry in entries.items():
        for report, figures in entry["reported"].items():
            if figures:
                rows.append((name, f"report {report}", *(_share(figures.get(key)) for key in columns)))
        measured = {key: _measured(entry, key, scores.full_set(results)) for key in given[name]}
        rows.append((name, "measured", *(_share(measured.get(key)) for key in columns)))
    heads = tuple("F1" if key == "f1" else key for key in columns)
    return Table("Reported and measured accuracy", ("system", "figures", *heads), tuple(rows), left=2)


def protocols(results: dict, kind: str = "accuracy") -> Table:
    """Return each protocol's accuracies, by model and as the mean over models; no rows for a single protocol."""
    entries, full, compared = results["models"], scores.full_set(results), scores.compared(results, kind=kind)
    groups: dict[str, dict[str, dict]] = {}
    for name, entry in entries.items():
        groups.setdefault(entry.get("protocol", "-"), {})[name] = entry
    rows = []
    for protocol, members in groups.items() if len(groups) > 1 else ():
        figures = []
        for name, entry in members.items():
            found = compared[name]
            worst = min(found, key=found.get, default=None)
            figures.append((scores.score(entry, full, kind), scores.mean(found.values()), found.get(worst)))
            named = f"{_share(found[worst])} ({worst})" if found else "-"
            rows.append((protocol, name, _sampling(entry), *map(_share, figures[-1][:2]), named))
        if len(figures) > 1:
            means = (_share(scores.mean(column)) for column in zip(*figures, strict=True))
            rows.append((protocol, f"mean of {len(figures)} models", "", *means))
    count = scores.how_many(results, kind=kind)
    columns = ("protocol", "system", "channel sampling", full, f"mean{count}", f"worst{count}")
    return Table(f"Test protocols: {_named(kind)} over channel combinations", columns, tuple(rows), left=3)


def variants(results: dict, kind: str = "accuracy") -> Table:
    """Return each variant's change of accuracy against its base: on the full set, and as the mean over combinations."""
    entries, full, compared = results["models"], scores.full_set(results), scores.compared(results, kind=kind)
    several = len(scores.choices(results)) > 1
    rows = []
    for name, entry in entries.items():
        other = scores.compared_with(results, name)
        if other is None:
            continue
        both = entries[other], entry
        row = _change(*(scores.score(each, full, kind) for each in both))
        if several:
            row += _change(*(scores.mean(compared[each].values()) for each in (other, name)))
        if SHUFFLED in scores.labels(results):
            row += _change(*(scores.score(each, SHUFFLED, kind) for each in both))
        rows.append((name, other, *row))
    mean = f"mean{scores.how_many(results, kind=kind)}"
    kinds = (full, *([mean] if several else []), *([SHUFFLED] if SHUFFLED in scores.labels(results) else []))
    heads = (head for label in kinds for head in (f"base {label}", label, "points"))
    return Table(f"Variants: test {_named(kind)} of base and variant", ("variant", "base", *heads), tuple(rows), left=2)


def ablation(results: dict) -> Table:
    """Return report E's ablation: validation accuracy before and after each step "x+a" -> "x+a+b" of the run."""
    entries, full = results["models"], scores.full_set(results)
    rows = []
    for name in entries:
        before, _, added = name.rpartition("+")
        if before in entries:
            figures = (_share(scores.validation(entries[key], full).get("accuracy")) for key in (before, name))
            rows.append((str(name.count("+")), f"{scores.base(name)}: +{added}", *figures))
    title = f"Ablation: validation accuracy on {scores.in_words(full)}"
    return Table(title, ("step", "change", "before", "after"), tuple(rows), left=2)


def predictions(found: dict[str, list]) -> Table:
    """Return each system's predictions from `plots.Prediction`s by entry, of the images that all entries have."""
    by_path = [{item.path: item for item in own} for own in found.values()]
    paths = [path for path in next(iter(by_path), ()) if all(path in own for own in by_path)]
    rows = tuple(
        (row[0].truth, *(f"{item.predicted} {item.probability:.0%}, {_verdict(item)}" for item in row))
        for row in ([own[path] for own in by_path] for path in paths)
    )
    return Table("Predictions on test images", ("true class", *found), rows, left=1 + len(found))


def confused(results: dict) -> tuple[Table, ...]:
    """Return a table for each model: the pairs of classes that most test images were confused in."""
    return tuple(
        Table(
            f"{name}: classes most often confused",
            ("true", "predicted", "images", "of"),
            tuple((row["true"], row["predicted"], f"{row['images']:,}", f"{row['of']:,}") for row in entry["confused"]),
            left=2,
        )
        for name, entry in results["models"].items()
        if entry.get("confused")
    )


def kernels(results: dict) -> tuple[Table, ...]:
    """Return a table for each traced model: the kernels that took longest on the device (`engine.watch.profiling`)."""
    columns = ("operator or kernel", "calls", "ms", "share")
    return tuple(
        Table(
            f"{name}: what took longest in the steps traced",
            columns,
            tuple(
                (row["name"], f"{row['calls']:,}", f"{row['ms']:,.3f}", _share(row["share"]))
                for row in entry["kernels"]
            ),
        )
        for name, entry in results["models"].items()
        if entry.get("kernels")
    )


def failed(results: dict) -> Table:
    """Return the models that were not trained to the end, with the reason."""
    return Table("Failed", ("model", "reason"), tuple(results.get("failed", {}).items()), left=2)


def data(results: dict) -> Table:
    """Return what became of the files of the run's data, and how they were understood, a line each."""
    counts, notes, changes = (results["data"].get(name) for name in ("files", "notes", "changes"))
    rows = (*((str(Account(**counts)),) if counts else ()), *(notes or ()), *(changes or ()))
    return Table("Data", ("what was found",), tuple((row,) for row in rows), left=1)


def sensors(results: dict) -> Table:
    """Return which channels images have, and how many images of each split; no rows where every image has all."""
    found = results["data"].get("sensors") or ()
    splits = [split for split in ("train", "val", "holdout", "test") if any(split in row for row in found)]
    numbered = any(row["name"].startswith(SENSOR) for row in found)
    rows = tuple(
        (
            row["name"],
            *([listed(row["channels"])] if numbered else ()),
            str(len(row["channels"])),
            *(_number(row.get(split), ",") for split in splits),
        )
        for row in found
    )
    heads = ("images of", *(["named"] if numbered else ()), "channels", *splits)
    return Table("Channels that images have", heads, rows, left=1 + numbered)


def rejected(results: dict) -> Table:
    """Return the files left out of the run, with the reason."""
    found = results["data"].get("rejected_files", ())
    rows = tuple((item["path"], item["split"], item["reason"]) for item in found)
    return Table("Files left out", ("file", "split", "reason"), rows, left=3)


def _select(results: dict, title: str, names: tuple[str, ...]) -> Table:
    """Return a row per entry with the figures `names`, without columns that are empty for all entries."""
    entries, full = results["models"], scores.full_set(results)
    texts = {name: [FIGURES[name](entry, full) for entry in entries.values()] for name in names}
    texts = {name: column for name, column in texts.items() if set(column) != {"-"}}
    left = 1 + sum(name in ("reported", "protocol", "sampling", "augmentations") for name in texts)
    return Table(title, ("system", *texts), tuple(zip(entries, *texts.values(), strict=True)), left)


def _narrower(table: Table, corner: str) -> Table:
    """Return the narrower of the table and its transpose, whose first column is headed `corner`."""
    columns = tuple(zip(table.columns, *table.rows, strict=True))
    turned = Table(table.title, (corner, *columns[0][1:]), columns[1:], table.left)
    return min(turned, table, key=_width) if table.rows else table


def _width(table: Table) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(table.columns, *table.rows, strict=True))


def _reported_figures(entry: dict, full: str) -> str:
    """Return a figure per report: on the full set, else the first figure of the report."""
    texts = []
    for report, figures in entry.get("reported", {}).items():
        key = full if full in figures else next(iter(figures), None)
        if key is not None:
            texts.append(f"{report} {_share(figures[key])}" + ("" if key == full else f" ({key})"))
    return ", ".join(texts) or "-"


def _has_measured(entry: dict) -> bool:
    keys = {key for figures in entry.get("reported", {}).values() for key in figures}
    return bool(keys & {*scores.of_split(entry), "val"})


def _measured(entry: dict, key: str, full: str) -> float | None:
    """Return the measured counterpart of a reported figure; precision, recall and F1 are on the reports' test."""
    if key == "val":
        return entry.get("val", {}).get("accuracy")
    if key in scores.of_split(entry):
        return scores.score(entry, key)
    tested = (label for figures in entry["reported"].values() for label in figures if label in scores.of_split(entry))
    return scores.score(entry, next(tested, full), key)


def _named(kind: str) -> str:
    return kind.replace("_", " ")


def _balanced(entry: dict, full: str) -> str:
    """Return balanced accuracy where it differs from accuracy on some combination."""
    differs = scores.is_unequal({"models": {"": entry}})
    return _share(scores.score(entry, full, "balanced_accuracy")) if differs else "-"


def _change(before: float | None, after: float | None) -> tuple[str, str, str]:
    there = scores.number(before) is not None and scores.number(after) is not None
    return _share(before), _share(after), f"{100 * (after - before):+.1f}" if there else "-"


def _verdict(item) -> str:
    return "right" if item.predicted == item.truth else "wrong"


def _sampling(entry: dict) -> str:
    # Earlier runs say true or false.
    sampling = entry.get("channel_sampling", "-")
    return {True: "on", False: "off"}.get(sampling, sampling)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    mean, least, greatest = map(scores.percent, (scores.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({least}-{greatest})"


def _is_round(size: int) -> bool:
    """Return whether `size` is a power of two, or three times a power of two."""
    size //= 3 if size % 3 == 0 else 1
    return size & (size - 1) == 0


def _share(value: float | list[float] | None) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(scores.percent, value)) + "%"
    return "-" if scores.number(value) is None else f"{scores.percent(value)}%"


def _number(value: float | None, form: str) -> str:
    return "-" if scores.number(value) is None else format(value, form)


def _large(value: float | None) -> str:
    if scores.number(value) is None:
        return "-"
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return str(value)


def _duration(seconds: float | None) -> str:
    if scores.number(seconds) is None:
        return "-"
    for scale, unit in ((3600, "h"), (60, "min")):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1f} s"
