"""Checkpoints: written whole or not at all, read without running code, with the number of their format."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from polychrome.engine.errors import StorageError, UserError
from polychrome.engine.machine.files import write_atomically

# 1, without a number: channels and flips were drawn batch by batch. 2: by image.
FORMAT = 2


def save(path: Path, content: dict) -> None:
    """Write `content`, of tensors, numbers, strings and containers, into a file whole or not at all.

    Raises:
        StorageError: the file cannot be written, as where the disk is full; an earlier file is intact.
    """
    # In memory first: torch's writer ends the process where a disk is full in the middle.
    stream = io.BytesIO()
    torch.save(content | {"format": FORMAT}, stream)
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
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # the unpickler answers damaged bytes with errors of every kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or is not a checkpoint ({reason})") from None
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path} is not a checkpoint of this project: it has no 'model' entry of weights")
    if (number := content.setdefault("format", 1)) not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has checkpoint format {number}, this version reads up to {FORMAT}: update polychrome to read it"
        )
    return content


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
