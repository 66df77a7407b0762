"""`report.md` and `report.html`: the same tables and pictures; the HTML page holds its pictures itself."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from polychrome.engine.errors import shown
from polychrome.engine.machine.files import within
from polychrome.engine.report import comparison, plots, scores, tables, verdict
from polychrome.engine.report.tables import Table
from polychrome.engine.run_folder import RunFolder

REPORTED = "Reported: the reports' figures, by report, on their data and schedules."
COSTS = (
    "Measured with the weights of the epoch under best, of several seeds with each one's own. Costs are of one image; "
    "act. MB: forward and backward activations as torchinfo counts them."
)
BALANCED = "balanced: balanced accuracy, the mean over the classes of the share of a class's images that is right."
RATIO = "ratio: of test accuracy to ResNet34's in this run."
COMPARISON = (
    "± is the standard deviation over seeds (n - 1). Flip averaging: by the mean logits of an image and its mirror "
    "image. Nothing is chosen by the test and held-out images. table.csv has these figures in full."
)
PROTOCOLS = (
    "subset: the model sees only the channels present; mask: it is also told which ones they are; zero-pad: the absent "
    "ones are zero (with evaluate --model NAME+any_channels the nearest ones); one-per-combination: each combination "
    "has its model, which, with zero-pad, sees zeros for the others. Mean and worst are over the combinations that all "
    "systems were tested on."
)
SENSORS = (
    "Images have different channels. A combination is tested on those test images that have all of it; all: on every "
    "image, with the channels that it has."
)
OTHERS = "The settings at the end of this page are those that the run was last asked for; these were trained so:"
CONFUSED = "On the first combination of channels; of: the test images of the true class that got a class on it."
MOST_CLASSES = 12  # of a confusion matrix that is shown at once
# What CSS calls an inch.
PIXELS_PER_INCH = 96


@dataclass(frozen=True)
class Picture:
    """A PNG file with its title; charts have an SVG file beside it."""

    title: str
    path: Path

    def svg(self) -> Markup | None:
        """Return the chart's SVG element; None of a picture that is none."""
        drawn = self.path.with_suffix(".svg")
        return Markup(plots.themed(drawn)) if drawn.exists() else None

    def size(self) -> tuple[int, int]:
        """Return width and height in CSS pixels, at which an inch of the drawing is an inch of the page."""
        with Image.open(self.path) as image:
            across, down = image.info.get("dpi", (PIXELS_PER_INCH, PIXELS_PER_INCH))
            return round(image.width * PIXELS_PER_INCH / across), round(image.height * PIXELS_PER_INCH / down)


@dataclass(frozen=True)
class Section:
    """A part of a report: a line of text, tables and pictures; left out without rows and pictures.

    On the HTML page a section that is `collapsed` shows its title, and the rest when a reader asks for it.
    """

    title: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    note: str = ""
    collapsed: bool = False

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
        "verdict": verdict.sentences(results),
        "ranking": verdict.ranking(results),
        "chart": verdict.chart(results),
        "began": _began(environment),
        "commit": _short(environment.get("commit")),
    }
    for name in ("report.md", folder.html.name):
        found = sections(results, folder.plots, has_chart=name == folder.html.name)
        filled = [section for section in found if not section.is_empty]
        folder.write(folder.root / name, rendered(f"{name}.j2", content | {"sections": filled}))


def rendered(name: str, content: dict, *packages: str) -> str:
    """Return a page: `content` in the template `name` from `packages`, or else from this package.

    HTML pages extend `page.html.j2`, which has the style, and take tables and pictures from `widgets.html.j2`.
    """
    return _environment(packages, name.endswith(".html.j2")).get_template(name).render(content)


@cache
def _environment(packages: tuple[str, ...], is_html: bool) -> Environment:
    """Return what reads and compiles the templates of `packages`, each once in a process."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "polychrome.engine.report")]),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, "cell": _markdown_cell, "shown": shown, "along": _along}
    environment.globals["colours"] = [f"var(--c-{colour[1:].lower()}, {colour})" for colour in plots.COLOURS]
    return environment


def sections(results: dict, folder: Path, has_chart: bool = False) -> list[Section]:
    """Return a report's sections in order, some of them empty; `folder` has the pictures.

    `has_chart`: whether the page has the chart of `verdict`, beside which some would say the same again.
    """
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
        Section("Failed", _filled(tables.failed(results))),
        Section("Reported and measured", _filled(tables.reported(results)), note=REPORTED),
        *_by_channels(results, found, has_chart),
        Section("Accuracy by split", comparison.tables(results), note=COMPARISON)
        if comparison.says_more(results)
        else Section("Accuracy by split"),
        Section("Test protocols", _filled(*_each(tables.protocols, results)), note=PROTOCOLS),
        Section("Variants of training", _filled(*_each(tables.variants, results))),
        Section(
            "Ablation: validation accuracy",
            _filled(tables.ablation(results)),
            note=f"On {scores.in_words(scores.full_set(results))}.",
        ),
        Section("Training", _filled(tables.training(results)), found("curves", "Loss and accuracy by epoch")),
        Section("Trained with other settings", _filled(tables.settings(results)), note=OTHERS),
        Section("Classes most often confused", _filled(*tables.confused(results)), note=CONFUSED),
        Section(
            "Confusion matrices",
            pictures=found.of_models("confusion", "Confusion matrix", results),
            collapsed=results["data"]["classes"] > MOST_CLASSES,
        ),
        Section("Predictions", pictures=found.of_models("predictions", "Predictions on test images", results)),
        Section("Data", _filled(tables.data(results), tables.sensors(results)), note=_on_sensors(results)),
        Section("Files left out", _filled(tables.rejected(results))),
        Section("What took longest", _filled(*tables.kernels(results)), collapsed=True),
    ]


def _on_sensors(results: dict) -> str:
    return SENSORS if results["data"].get("sensors") else ""


def _by_channels(results: dict, found: _Pictures, has_chart: bool) -> list[Section]:
    """Return the scores by channel combination, or by number of channels where the combinations are many."""
    entries = results["models"]
    if scores.is_long(results):
        kept = (tables.channels_kept(results, kind=kind) for kind in scores.kinds(results))
        both = _filled(*kept, tables.single_channels(results))
        pictures = found("channels_kept", "Test accuracy by number of channels kept")
        note = f"{len(scores.labels(results))} combinations were tested; results.json has the scores of each."
        if scores.how_many(results):
            note += f" Means are over the {len(scores.shared(results))} that all systems were tested on."
        return [Section("Test accuracy by number of channels kept", both, pictures, note)]
    pictures = found("combinations", "Test accuracy by channel combination")
    several = min(len(entries), len(scores.labels(results))) > 1
    overview = _filled(*(tables.accuracies(entries, kind=kind) for kind in scores.kinds(results))) if several else ()
    if has_chart and verdict.by_combination(results):
        overview, pictures = tuple(table for table in overview if scores.is_unequal(results)), ()
    each = (tables.combinations(name, entry) for name, entry in entries.items())
    return [
        Section("Test accuracy by channel combination, %", overview, pictures),
        Section("Test scores by channel combination", _filled(*each), collapsed=True),
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
    some = " A model that failed with some has means of the others." if scores.lacking_seeds(results) else ""
    return f"Means of {len(seeds)} runs, seeds {', '.join(map(str, seeds))}.{some}"


def _began(environment: dict) -> dict[str, str | list[str]]:
    """Return the commands that began a run and went on with it, and the day of the last; empty where not known."""
    began = environment.get("began") or [{}]
    commands = list(dict.fromkeys(str(each["command"]) for each in began if each.get("command")))
    return {"commands": commands, "day": str(began[-1].get("at", ""))[:10]}


def _short(commit: str | None) -> str:
    """Return a commit with 12 digits, and what is said of it; empty where none is known."""
    digits, *rest = (commit or "").split(" ", 1)
    return " ".join((digits[:12], *rest))


def _inline(path: Path) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())


def _along(share: float, chart: verdict.Chart) -> str:
    """Return how far along a bar of the chart a share lies, as CSS writes it."""
    return f"{100 * min(1.0, max(0.0, share / chart.end)):.2f}%"


def _markdown_cell(text: str) -> str:
    """Return `text` escaped, so that Markdown shows the same letters, inside a table or outside."""
    return re.sub(r"([\\`*_{}\[\]#|$~])", r"\\\1", html.escape(shown(text), quote=False))
