"""Exported files: written when they are checked, and loaded."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from polychrome.engine.errors import UserError, one_line
from polychrome.engine.export.check import Check, ExportError, compare
from polychrome.engine.export.classifier import Classifier, Description, Exported
from polychrome.engine.machine import integrity
from polychrome.engine.machine.files import check_writable, write_atomically

if TYPE_CHECKING:
    from polychrome.engine.export.whole import WholeCheck

FORMATS = ("pt2", "onnx", "safetensors")


def save(model: nn.Module, description: Description, path: Path, images: Tensor, note: str) -> Check:
    """Write `model` in the format that the suffix of `path` names, and beside it `<path>.json`, its description.

    The file is loaded and compared with the model before the file gets its name.

    Args:
        model: the network without standardisation, in float32; put into evaluation, without gradients.
        images: [n, channels, height, width], the values stored, uint8 or float32, to compare on; on the model's device,
            which a pt2 is compiled for.
        note: where the images are from, in words, for the JSON.

    Raises:
        UserError: the format is unknown, needs a missing package, or lacks an operator; or `path` is unwritable.
        ExportError: the file differs from the model by more than `Check.passed` allows; the file is removed.
        StorageError: the disk is full.
    """
    check_target(path)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"model{path.suffix}"
        check = _written(model, description, made, path, images)
        _keep(made, path, {**description.as_dict(), "check": {**asdict(check), "on": note}})
    return check


def save_whole(
    model: nn.Module, description: Description, path: Path, images: Tensor, pixels: Sequence[np.ndarray], note: str
) -> WholeCheck:
    """Write `model` as ONNX with crop, resize, standardisation and softmax in the graph, see `engine.export.whole`.

    Args:
        images: [n, channels, height, width], the values stored, uint8 or float32, to compare the network alone on.
        pixels: images [height, width, channels] of any sizes, the values stored, to compare the whole file on.

    Raises:
        UserError, ExportError, StorageError: as `save`; the suffix is not ".onnx".
    """
    check_target(path)
    if path.suffix != ".onnx":
        raise UserError(f"{path}: preprocessing goes into .onnx files alone")
    from polychrome.engine.export import whole

    with tempfile.TemporaryDirectory() as folder:
        core, made = Path(folder) / "core.onnx", Path(folder) / "model.onnx"
        _written(model, description, core, path, images)
        whole.write(core, made, description)
        check = whole.compare(load(made), model, description, pixels)
        if not check.passed:
            raise ExportError(f"{path} was not written: it does not compute what {description.model} does ({check})")
        _keep(made, path, {**whole.about(description), "check": {**asdict(check), "on": note}})
    return check


def _written(model: nn.Module, description: Description, made: Path, path: Path, images: Tensor) -> Check:
    """Write the network into the file `made`, and compare it; `path` is where it is to go."""
    _format(path).write(Classifier(model, description).to(images.device), made)
    check = compare(load(made), model, description, images)
    if not check.passed:
        raise ExportError(
            f"{path} was not written: it does not compute what {description.model} does ({check}; "
            f"{check.largest_logit:.3g} is the largest logit)"
        )
    return check


def _keep(made: Path, path: Path, about: dict) -> None:
    """Give a file that was checked its name, and write what is known of it beside it."""
    content, digest = made.read_bytes(), integrity.file_digest(made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    integrity.description_of(path).unlink(missing_ok=True)  # of a former file: it must not be taken for this one's
    write_atomically(path, content)
    text = json.dumps({**about, integrity.KEY: digest}, indent=2, ensure_ascii=False)
    write_atomically(integrity.description_of(path), text + "\n")


def load(path: Path | str) -> Exported | Classifier:
    """Return an exported model, called as (images) or, if made for any channels, (images, mask).

    Images are float32 [batch, channels, size, size] with the values that the file's description says, mask bool
    [batch, channels]; the result is logits [batch, classes]. A file with preprocessing takes pixels [batch, height,
    width, channels] as stored, and gives probabilities. Other types and shapes are refused with a `UserError`. The
    result has the file's `description`, with the names of the classes. `.safetensors` gives a `Classifier`, whose
    `model` is the network.

    A `.pt2` holds compiled code, which loading it runs: load only files whose maker you trust. The other formats hold
    no code. Where the file's description `<path>.json` is there, the file is compared with the digest in it.

    Raises:
        UserError: the file is missing or damaged, of an unknown format, or needs a package that is not installed.
    """
    path = Path(path)
    form = _format(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        fault = integrity.fault_of_described(path)
        model = None if fault else form.read(path)
    except Exception as error:  # each reader answers damaged bytes with errors of its own
        raise UserError(f"{path} is damaged or was not exported by this project ({one_line(error)})") from error
    if fault:
        raise UserError(f"{path} is damaged: {fault}")
    return model


def check_target(path: Path) -> None:
    """Raise UserError where a file of this name cannot be written, or not in this format."""
    _format(path)
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder")
    check_writable(path.parent)


def _format(path: Path):
    """Return the module of the format that a file's suffix names; raise UserError where the format cannot be used."""
    name = path.suffix.removeprefix(".")
    if name not in FORMATS:
        raise UserError(f"{path} must end in {', '.join('.' + known for known in FORMATS)}")
    form = import_module(f"polychrome.engine.export.{name}")
    missing = [package for package in form.PACKAGES if not _is_installed(package)]
    if missing:
        raise UserError(f"{name} files need {', '.join(missing)}: pip install {' '.join(missing)}")
    return form


def _is_installed(package: str) -> bool:
    return sys.modules.get(package, True) is not None and find_spec(package) is not None
