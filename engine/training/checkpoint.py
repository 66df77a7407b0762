"""Checkpoints: written whole or not at all, read without running code, with a checksum and a number of their format."""

from __future__ import annotations

import io
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from polychrome.engine.errors import StorageError, UserError, first_line, one_line
from polychrome.engine.machine import integrity
from polychrome.engine.machine.files import write_atomically

# 1, without a number: channels and flips were drawn batch by batch. 2: by image.
FORMAT = 2
PICKLE = b"\x80"  # what a checkpoint of an old version of torch begins with


def save(path: Path, content: dict) -> None:
    """Write `content`, of tensors, numbers, strings and containers, into a file whole or not at all.

    Raises:
        StorageError: the file cannot be written, as where the disk is full; an earlier file is intact.
    """
    # In memory first: torch's writer ends the process where a disk is full in the middle.
    stream = io.BytesIO()
    torch.save(content | {"format": FORMAT}, stream)
    integrity.seal(stream)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent} cannot be made: {error.strerror}") from error
    write_atomically(path, stream.getbuffer())


def load(path: Path, device: torch.device | str = "cpu") -> dict:
    """Return the content that `save` wrote, in this format or an earlier format, with its number as "format".

    Raises:
        UserError: the file is missing, damaged, of a later format, or holds more than plain data.
    """
    try:
        content = read(path, device)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or is not a checkpoint ({one_line(error)})") from None
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path} is not a checkpoint of this project: it has no 'model' entry of weights")
    if (number := content.setdefault("format", 1)) not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has checkpoint format {number}, this version reads up to {FORMAT}: update polychrome to read it"
        )
    return content


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return what `save` or `torch.save` wrote, of plain data, after its checksums have been verified.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, or holds more than plain data.
    """
    while True:
        with open(path, "rb") as file:
            if found := _other_kind(file) or integrity.fault(file):
                raise ValueError(found)
            try:
                content = torch.load(path, map_location=device, weights_only=True)  # slower from an open file
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except UnpicklingError as error:  # whose message advises to load it all the same
                unsafe = "weights_only" in str(error)
                raise ValueError("it holds more than plain data" if unsafe else one_line(error)) from None
            except Exception as error:  # the unpickler answers damaged bytes with errors of every kind
                raise ValueError(first_line(error)) from None
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return content
        # Another process has replaced the file in between.


def _other_kind(file: BinaryIO) -> str | None:
    """Return in words how a file begins that cannot be a checkpoint, an image for instance; None of others."""
    head = file.read(len(integrity.ARCHIVE))
    file.seek(0)
    begins = not head or head.startswith((integrity.ARCHIVE, PICKLE))
    return None if begins else f"it begins with {head!r}"


def fault(path: Path) -> str | None:
    """Return in words what is wrong with the bytes of a checkpoint that is there; None where nothing is.

    Nothing is unpacked: `load` may still find that the content is not a checkpoint's.
    """
    try:
        with open(path, "rb") as file:
            return integrity.fault(file)
    except OSError as error:
        return one_line(error)


def restore(model: torch.nn.Module, content: dict, path: Path) -> None:
    """Load the checkpoint's weights into `model`.

    Raises:
        UserError: the weights belong to another model.
    """
    wanted, got = model.state_dict(), content["model"]
    missing, extra = wanted.keys() - got.keys(), got.keys() - wanted.keys()
    shapes = [key for key in wanted.keys() & got.keys() if wanted[key].shape != got[key].shape]
    if missing or extra or shapes:
        example = sorted([*missing, *extra, *shapes])[0]
        raise UserError(
            f"{path} is a checkpoint of another model: {len(missing)} weights missing, {len(extra)} unknown, "
            f"{len(shapes)} of another shape (first: {example})"
        )
    model.load_state_dict(got)
