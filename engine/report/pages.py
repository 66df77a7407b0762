"""`report.md` and `report.html`: the same tables and pictures; the HTML page holds its pictures itself."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from polychrome.engine.errors import shown
from polychrome.engine.machine.files import within
from polychrome.engine.report import comparison, plots, scores, tables
from polychrome.engine.report.tables import Table
from polychrome.engine.run_folder import RunFolder

REPORTED = "Reported: the reports' figures, by report, on their data and schedules."
COSTS = (
    "Measured with the weights of the epoch under best. Costs are of one image; act. MB: forward and backward "
    "activations as torchinfo counts them."
)
BALANCED = "balanced: balanced accuracy, the mean over the classes of the share of a class's images that is right."
RATIO = "ratio: of test accuracy to ResNet34's in this run."
COMPARISON = (
    "± is the standard deviation over seeds (n - 1). Flip averaging: by the mean logits of an image and its mirror "
    "image. Nothing is chosen by the test and held-out images. table.csv has these figures in full."
)
PROTOCOLS = (
    "subset: the model sees only the channels present; mask: it is also told which ones they are; zero-pad: the absent "
    "ones are zero; one-per-combination: each combination has its model, which, with zero-pad, sees zeros for the "
    "others. The mean is over all combinations tested."
)
SENSORS = (
    "Images have different channels. A combination is tested on those test images that have all of it; all: on every "
    "image, with the channels that it has."
)
# What CSS calls an inch.
PIXELS_PER_INCH = 96


@dataclass(frozen=True)
class Picture:
    """A PNG file with its title."""

    title: str
    path: Path

    def size(self) -> tuple[int, int]:
        """Return width and height in CSS pixels, at which an inch of the drawing is an inch of the page."""
        with Image.open(self.path) as image:
            across, down = image.info.get("dpi", (PIXELS_PER_INCH, PIXELS_PER_INCH))
            return round(image.width * PIXELS_PER_INCH / across), round(image.height * PIXELS_PER_INCH / down)


@dataclass(frozen=True)
class Section:
    """A part of a report: a line of text, tables and pictures; left out without rows and pictures."""

    title: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    note: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.tables or self.pictures)


def pictures(folder: RunFolder, results: dict, history: dict[str, list]) -> None:
    """Draw the pictures of a whole run into its folder, see `plots.draw`."""
    plots.draw(results, history, folder.plots)


def write(folder: RunFolder, results: dict, environment: dict) -> None:
    """Write both pages from `results.json`'s content and the pictures in the run's `plots/`."""
    content = {
        "results": results,
        "environment": environment,
        "config": folder.config.read_text(encoding="utf-8"),
        "heading": _heading(results),
        "runs": _runs(results),
        "sections": [section for section in sections(results, folder.plots) if not section.is_empty],
    }
    for name in ("report.md", folder.html.name):
        folder.write(folder.root / name, rendered(f"{name}.j2", content))


def rendered(name: str, content: dict, *packages: str) -> str:
    """Return a page: `content` in the template `name` from `packages`, or else from this package.

    HTML pages extend `page.html.j2`, which has the style, and take tables and pictures from `widgets.html.j2`.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "polychrome.engine.report")]),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, "cell": _markdown_cell, "shown": shown}
    return environment.get_template(name).render(content)


def sections(results: dict, folder: Path) -> list[Section]:
    """Return a report's sections in order, some of them empty; `folder` has the pictures."""
    found = _Pictures(folder)
    entries = results["models"].values()
    notes = (
        REPORTED if any(entry.get("reported") for entry in entries) else "",
        COSTS,
        BALANCED if scores.is_unequal(results) else "",
        RATIO if any("ratio_to_resnet34" in entry for entry in entries) else "",
    )
    return [
        Section(
            tables.systems(results).title,
            _filled(tables.systems(results)),
            found("tradeoff", "Test accuracy against multiply-adds"),
            " ".join(filter(None, notes)),
        ),
        Section("Data", _filled(tables.data(results), tables.sensors(results)), note=_on_sensors(results)),
        Section("Failed", _filled(tables.failed(results))),
        Section("Reported and measured", _filled(tables.reported(results)), note=REPORTED),
        *_by_channels(results, found),
        Section("Accuracy by split", comparison.tables(results), note=COMPARISON)
        if comparison.says_more(results)
        else Section("Accuracy by split"),
        Section("Test protocols", _filled(*_each(tables.protocols, results)), note=PROTOCOLS),
        Section("Variants of training", _filled(*_each(tables.variants, results))),
        Section("Ablation: validation accuracy", _filled(tables.ablation(results))),
        Section("Training", _filled(tables.training(results)), found("curves", "Loss and accuracy by epoch")),
        Section("What took longest", _filled(*tables.kernels(results))),
        Section(
            "Predictions",
            pictures=(
                *found.of_models("confusion", "Confusion matrix", results),
                *found.of_models("predictions", "Predictions on test images", results),
            ),
        ),
        Section("Files left out", _filled(tables.rejected(results))),
    ]


def _on_sensors(results: dict) -> str:
    return SENSORS if results["data"].get("sensors") else ""


def _by_channels(results: dict, found: _Pictures) -> list[Section]:
    """Return the scores by channel combination, or by number of channels where the combinations are many."""
    entries = results["models"]
    if scores.is_long(results):
        kept = (tables.channels_kept(results, kind=kind) for kind in scores.kinds(results))
        both = _filled(*kept, tables.single_channels(results))
        pictures = found("channels_kept", "Test accuracy by number of channels kept")
        note = f"{len(scores.labels(results))} combinations were tested; results.json has the scores of each."
        return [Section("Test accuracy by number of channels kept", both, pictures, note)]
    pictures = found("combinations", "Test accuracy by channel combination")
    several = min(len(entries), len(scores.labels(results))) > 1
    overview = _filled(*(tables.accuracies(entries, kind=kind) for kind in scores.kinds(results))) if several else ()
    each = (tables.combinations(name, entry) for name, entry in entries.items())
    return [
        Section("Test accuracy by channel combination, %", overview, pictures),
        Section("Test scores by channel combination", _filled(*each)),
    ]


class _Pictures:
    """Finds the pictures that were drawn of a run."""

    def __init__(self, plots: Path) -> None:
        self.plots = plots

    def __call__(self, kind: str, title: str) -> tuple[Picture, ...]:
        path = self.plots / f"{kind}.png"
        return (Picture(title, path),) if path.exists() else ()

    def of_models(self, kind: str, title: str, results: dict) -> tuple[Picture, ...]:
        every = (Picture(f"{title}: {name}", within(self.plots, f"{kind}-{name}.png")) for name in results["models"])
        return tuple(picture for picture in every if picture.path.exists())


def _each(make: Callable[[dict, str], Table], results: dict) -> Iterator[Table]:
    """Yield a table of accuracy and, where it differs, the same of balanced accuracy."""
    yield from (make(results, kind) for kind in scores.kinds(results))


def _filled(*every: Table) -> tuple[Table, ...]:
    return tuple(table for table in every if table.rows)


def _heading(results: dict) -> str:
    names = list(results["models"])
    return f"{results['task']}: " + (", ".join(names) if 0 < len(names) <= 4 else f"{len(names)} systems")


def _runs(results: dict) -> str:
    seeds = results.get("seeds", [])
    if len(seeds) < 2:
        return f"One run, seed {results['seed']}."
    return f"Means of {len(seeds)} runs, seeds {', '.join(map(str, seeds))}."


def _inline(path: Path) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())


def _markdown_cell(text: str) -> str:
    """Return `text` escaped, so that Markdown shows the same letters, inside a table or outside."""
    return re.sub(r"([\\`*_{}\[\]#|$~])", r"\\\1", html.escape(shown(text), quote=False))
