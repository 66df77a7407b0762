"""The command `predict`: classify images by a trained model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from polychrome.engine import console
from polychrome.engine.errors import UserError, shown, spreadsheet_cell
from polychrome.engine.machine.files import csv_text, write_atomically
from polychrome.engine.machine.memory import keep_freed
from polychrome.engine.machine.workers import cpus
from polychrome.engine.report import printed
from polychrome.engine.report.tables import Table
from polychrome.train.trained import Prediction, TrainedModel, found_files, load

FORMATS = (".csv", ".json", ".parquet")


def predict_images(
    run: Path,
    images: tuple[Path, ...],
    model: str | None,
    channels: str | None,
    top: int,
    output: Path | None,
    device: str = "auto",
) -> None:
    """Print or write the likeliest classes of each image.

    A terminal gets a table, a pipe or a file the CSV of `as_csv`.

    Args:
        images: files, folders and patterns.
        top: how many classes the table has.
        output: a file that is written in place of what is printed, of one of `FORMATS` by its ending.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: the folder is not a run's, the model was not trained there, there is no such image, or none of the
            images can be read.
    """
    if output is not None and output.suffix not in FORMATS:
        raise UserError(f"--output {output}: the name must end in {', '.join(FORMATS)}")
    trained = load(run, model, channels, device=device, workers=cpus())
    files = found_files(images)
    keep_freed(trained.device)
    with console.progress("classifying", len(files)) as bar:
        found = trained.predict_files(files, say=_note, done=bar.advance, warn=_note)
    bad = [each for each in found if each.reason is not None]
    if len(bad) == len(found):
        more = f" (and none of the other {len(bad) - 1:,})" if len(bad) > 1 else ""
        raise UserError(f"{bad[0].path}: {bad[0].reason}{more}")
    title = ", ".join(filter(None, [trained.name, f"channels {trained.combination}", trained.arithmetic]))
    if output is not None:
        _write(output, found, trained)
        more = f", and why {len(bad):,} more have no class" if bad else ""
        _note(f"{title}: {len(found) - len(bad):,} images in {output}{more}")
    elif console.console.is_terminal:
        printed.show(as_table(title, found, top))
    else:
        _note(title)
        sys.stdout.write(as_csv(found, trained.classes))
    for each in bad:
        _note(f"left out: {each.path}: {each.reason}")


def as_table(title: str, found: Sequence[Prediction], top: int) -> Table:
    """Return the `top` likeliest classes of each image; a folder that all files lie in is in the title."""
    rows, folder = [], Path()
    if len({Path(each.path).is_absolute() for each in found}) == 1:
        folder = Path(os.path.commonpath([Path(each.path).parent for each in found]))
    title += f", images of {folder}" if folder.parts else ""
    for each in found:
        likely = [f"{name} {share:.1%}" for name, share in each.probabilities.items()][:top]
        said = (likely[0], ", ".join(likely[1:])) if likely else ("left out", each.reason)
        rows.append((os.path.relpath(each.path, folder) if folder.parts else each.path, *said))
    heads = ("image", "class", "next") if top > 1 else ("image", "class")
    return Table(title, heads, tuple(row[: len(heads)] for row in rows), left=3)


def as_csv(found: Sequence[Prediction], classes: Sequence[str]) -> str:
    """Return predictions as CSV: path, class, its probability, why there is none, and the probability of each class.

    The column of a class is headed by its name, with " (class)" after the name of another column.
    """
    heads, rows = ["path", "class", "probability", "reason"], []
    for head in map(spreadsheet_cell, classes):
        while head in heads:
            head += " (class)"
        heads.append(head)
    for each in found:
        shares = [each.probability, *(each.probabilities.get(name) for name in classes)]
        likely, *others = ("" if share is None else f"{share:.6f}" for share in shares)
        words = [spreadsheet_cell(word or "") for word in (each.path, each.name, each.reason)]
        rows.append((*words[:2], likely, words[2], *others))
    return csv_text(heads, rows)


def _write(output: Path, found: Sequence[Prediction], trained: TrainedModel) -> None:
    if output.suffix == ".parquet":
        content = _parquet(found, trained.classes)
    elif output.suffix == ".json":
        rows = [
            {
                "path": each.path,
                "class": each.name,
                "probability": each.probability,
                "reason": each.reason,
                "probabilities": dict(each.probabilities),
            }
            for each in found
        ]
        content = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    else:
        content = as_csv(found, trained.classes)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    write_atomically(output, content)


def _parquet(found: Sequence[Prediction], classes: Sequence[str]) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow.parquet import write_table
    except ImportError as error:
        raise UserError("--output .parquet needs pyarrow: pip install 'polychrome[parquet]'") from error
    columns = {
        "path": [shown(each.path) for each in found],
        "class": pa.array([each.name and shown(each.name) for each in found], pa.string()),
        "probability": pa.array([each.probability for each in found], pa.float32()),
        "reason": pa.array([each.reason and shown(each.reason) for each in found], pa.string()),
        "probabilities": pa.array(
            [[(shown(name), share) for name, share in each.probabilities.items()] for each in found],
            pa.map_(pa.string(), pa.float32()),
        ),
    }
    stream = pa.BufferOutputStream()
    write_table(pa.table(columns), stream)
    return stream.getvalue().to_pybytes()


def _note(line: str) -> None:
    """Print a line on stderr, so that a pipe has the predictions alone."""
    print(shown(line), file=sys.stderr)
