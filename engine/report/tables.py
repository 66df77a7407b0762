"""The tables of a report, built once and shown alike on the terminal, in Markdown and in HTML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Title, column heads and rows of text; the first column is left-aligned, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


# Column head -> text of the figure in a model's entry of `results.json`.
FIGURES = {
    "accuracy": lambda entry: _share(next(iter(entry["test"].values()))["accuracy"]),
    "ratio": lambda entry: _share(entry.get("ratio_to_resnet34")),
    "params": lambda entry: f"{entry['params']:,}",
    "mult-adds": lambda entry: _large(entry["macs"]),
    "FLOPs": lambda entry: _large(entry["flops"]),
    "act. MB": lambda entry: f"{entry['activation_mb']:.2f}",
    "depth": lambda entry: str(entry["depth"]),
    "best": lambda entry: f"{entry['best_epoch']}/{entry['epochs']}",
    "val loss": lambda entry: _number(entry["val"]["loss"], ".3f"),
    "train s": lambda entry: f"{entry['train_seconds']:.0f}",
    "img/s": lambda entry: f"{entry['images_per_second']:,.0f}",
    "peak MB": lambda entry: f"{entry['peak_memory_mb']:,.0f}",
}


def combinations(name: str, protocol: str, scores: dict[str, dict]) -> Table:
    """Return one model's scores by channel combination."""
    rows = tuple(
        (
            channels,
            *(_share(row[key]) for key in ("accuracy", "precision", "recall", "f1")),
            _number(row["loss"], ".3f"),
        )
        for channels, row in scores.items()
    )
    return Table(f"{name} ({protocol})", ("channels", "accuracy", "precision", "recall", "F1", "loss"), rows)


def accuracies(entries: dict[str, dict]) -> Table:
    """Return the test accuracy of all models by channel combination, a column per model."""
    names = list(next(iter(entries.values()))["test"])
    rows = tuple((name, *(_share(entry["test"][name]["accuracy"]) for entry in entries.values())) for name in names)
    return Table("Test accuracy", ("channels", *entries), rows)


def models(results: dict) -> Table:
    """Return a row per model: what it reached, the ratio to ResNet34 where that was trained too, and its costs."""
    return _select(results, ("accuracy", "ratio", "params", "mult-adds", "best", "train s"))


def models_in_full(results: dict) -> Table:
    """Return `models` with every figure of `results.json` that is one number."""
    return _select(results, tuple(FIGURES))


def _select(results: dict, names: tuple[str, ...]) -> Table:
    entries = results["models"]
    with_ratio = any("ratio_to_resnet34" in entry for entry in entries.values())
    names = tuple(name for name in names if with_ratio or name != "ratio")
    rows = tuple((model, *(FIGURES[name](entry) for name in names)) for model, entry in entries.items())
    title = "Models (ratio: of test accuracy to ResNet34's)" if with_ratio else "Models"
    return Table(title, ("model", *names), rows)


def rejected(results: dict) -> Table:
    """Return the files left out of the run, with the reason."""
    rows = tuple((item["path"], item["split"], item["reason"]) for item in results["data"]["rejected_files"])
    return Table("Files left out", ("file", "split", "reason"), rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _large(value: int) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return str(value)
