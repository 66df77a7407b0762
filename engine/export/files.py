"""Exported files: written when they are checked, and loaded."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from polychrome.engine.errors import UserError, one_line
from polychrome.engine.export.check import Check, ExportError, compare
from polychrome.engine.export.classifier import Classifier, Description
from polychrome.engine.machine import integrity
from polychrome.engine.machine.files import check_writable, write_atomically

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
    form = _format(path)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"model{path.suffix}"
        form.write(Classifier(model, description).to(images.device), made)
        check = compare(load(made), model, description, images)
        if not check.passed:
            raise ExportError(
                f"{path} was not written: it does not compute what {description.model} does ({check}; "
                f"{check.largest_logit:.3g} is the largest logit)"
            )
        content, digest = made.read_bytes(), integrity.file_digest(made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    integrity.description_of(path).unlink(missing_ok=True)  # of a former file: it must not be taken for this one's
    write_atomically(path, content)
    about = {**description.as_dict(), "check": {**asdict(check), "on": note}, integrity.KEY: digest}
    write_atomically(integrity.description_of(path), json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return check


def load(path: Path | str) -> Callable[..., Tensor]:
    """Return an exported model, called as (images) or, if made for any channels, (images, mask).

    Images are float32 [batch, channels, height, width] with the values that the file's description says, mask bool
    [batch, channels]; the result is logits [batch, classes]. `.safetensors` gives a `Classifier`, whose `model` is the
    network.

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
        model = None if fault else form.read(path)[0]
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
