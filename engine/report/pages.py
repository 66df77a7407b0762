"""`report.md` and `report.html`: the same tables and pictures, the HTML page with its pictures inside."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from engine.report import tables
from engine.run_folder import RunFolder, write_atomically

RUN_PICTURES = {"combinations": "Test accuracy by channel combination", "curves": "Loss and accuracy by epoch"}
MODEL_PICTURES = {
    "confusion": "Confusion matrix",
    "predictions": "Predictions on test images",
}


def write(folder: RunFolder, results: dict, environment: dict) -> None:
    """Write both pages from `results.json`'s content and the pictures in the run's `plots/`."""
    content = {
        "results": results,
        "environment": environment,
        "config": folder.config.read_text(encoding="utf-8"),
        "models": tables.models_in_full(results),
        "combinations": [
            tables.combinations(name, entry["protocol"], entry["test"]) for name, entry in results["models"].items()
        ],
        "rejected": tables.rejected(results) if results["data"]["rejected"] else None,
        "pictures": _pictures(folder.plots, results["models"]),
    }
    for name in ("report.md", folder.html.name):
        templates = Environment(
            loader=PackageLoader("engine.report"),
            autoescape=name.endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters |= {"inline": _inline, "cell": _markdown_cell}
        write_atomically(folder.root / name, templates.get_template(f"{name}.j2").render(content))


def _pictures(plots: Path, models: Iterable[str]) -> list[tuple[str, Path]]:
    """Return title and path of each picture there is, run's first, then the models'."""
    named = [(title, plots / f"{kind}.png") for kind, title in RUN_PICTURES.items()]
    named += [
        (f"{title}: {model}", plots / f"{kind}-{model}.png")
        for kind, title in MODEL_PICTURES.items()
        for model in models
    ]
    return [(title, path) for title, path in named if path.exists()]


def _inline(path: Path) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())


def _markdown_cell(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, inside a table or outside."""
    text = html.escape(text, quote=False).replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", text)
