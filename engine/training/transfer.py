"""Weights that were trained elsewhere: read, downloaded, and loaded into a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from polychrome.engine.errors import UserError, one_line
from polychrome.engine.machine import integrity
from polychrome.engine.training import checkpoint
from polychrome.models.any_channels import AnyChannels

SHOWN = 5  # misfitting weights that an error names


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return name and module of the classifier's last linear or convolutional layer."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1]


def read(file: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights in a file: a checkpoint of ours, a state dict saved by torch, or safetensors.

    Beside them is returned what else is in a checkpoint, or as "description" what the JSON of safetensors says.

    Raises:
        UserError: the file is missing, is of another kind, or has no weights.
    """
    about: dict[str, Any] = {}
    try:
        if file.suffix == ".safetensors":
            content, about["description"] = _of_safetensors(file, device)
        else:
            content = checkpoint.read(file, device)
    except OSError as error:
        raise UserError(f"--weights {file} cannot be read: {error.strerror or error}") from None
    except ImportError:
        raise UserError(f"--weights {file}: reading it needs safetensors: pip install safetensors") from None
    except ValueError as error:
        raise UserError(f"--weights {file} is damaged or is not a file of weights ({error})") from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            about = {name: value for name, value in content.items() if name != key}
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"--weights {file} holds no state dict: wanted tensors by name")
    if not content:
        raise UserError(f"--weights {file} holds no weights")
    return content, about


def _of_safetensors(file: Path, device: torch.device | str) -> tuple[dict[str, Tensor], Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if found := integrity.fault_of_described(file):
        raise ValueError(found)
    try:
        description = integrity.description_of(file)
        about = json.loads(description.read_text(encoding="utf-8")) if description.exists() else None
        return load_file(file, device=str(device)), about
    except SafetensorError as error:
        raise ValueError(one_line(error)) from None


def of_torchvision(name: str) -> dict[str, Tensor] | None:
    """Return torchvision's weights for the model `name`, downloaded if need be; None if torchvision has no such model.

    Raises:
        UserError: the weights cannot be downloaded, or were downloaded and are damaged.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    weights = models.get_model_weights(name).DEFAULT
    _check_downloaded(weights.url)
    try:
        found = weights.get_state_dict(check_hash=True, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(
            f"torchvision's weights of {name} cannot be downloaded ({reason}): try again with a network, or give "
            "--weights FILE, a state dict or a run's folder"
        ) from None
    # Auxiliary classifiers are for training only, and the model here has none.
    return {key: value for key, value in found.items() if not key.startswith("aux")}


def _check_downloaded(url: str) -> None:
    """Raise UserError where an earlier download is damaged: its name has the digest, which torch checks on arrival."""
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    wanted = file.stem.rpartition("-")[2]
    if file.is_file() and not integrity.file_digest(file).startswith(wanted):
        raise UserError(f"{file} is damaged: its checksum is not {wanted}; remove it to have it downloaded again")


def load(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str,
    classes: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> str:
    """Copy weights into a model, and return in words what was copied and what starts fresh.

    An `AnyChannels` takes its network's, too. A head for other classes, or one that is not whole, keeps its fresh
    weights. `classes` are the names of the weights' classes and of the model's, in order; where either are not known,
    their number alone is compared.

    Raises:
        UserError: the weights are of another architecture; the message lists the misfitting weights.
    """
    if isinstance(model, AnyChannels):
        if any(key.startswith("network.") for key in weights):
            # what their channels were filled in by was measured on other data
            weights = {key.removeprefix("network."): weights[key] for key in weights if key not in AnyChannels.MEASURED}
        model = model.network
    own = model.state_dict()
    head = head_of(model)[0] + "."
    # Old weights lack the counts of batches that batch normalisation keeps today; load_state_dict excuses them too.
    missing = [
        f"{key} is missing"
        for key in own
        if key not in weights and not (key.startswith(head) or key.endswith("num_batches_tracked"))
    ]
    unknown = [f"{key} is not in the model" for key in weights if key not in own]
    shapes = [
        f"{key} is {list(weights[key].shape)} for {list(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape and not key.startswith(head)
    ]
    if misfits := shapes + missing + unknown:
        more = f" and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else ""
        raise UserError(f"{source}: weights of another architecture: {'; '.join(misfits[:SHOWN])}{more}")
    ends = {key for key in own if key.startswith(head)}
    why = _why_fresh(own, weights, ends, head) or _other_class(*classes)
    left_out = ends if why else set()
    model.load_state_dict({key: value for key, value in weights.items() if key not in left_out}, strict=False)
    more = f"; the last layer, {head.rstrip('.')}, starts fresh, as its {why}" if why else ""
    return f"{len(weights.keys() - left_out)} tensors of {source}{more}"


def _why_fresh(own: dict[str, Tensor], weights: dict[str, Tensor], ends: set[str], head: str) -> str:
    """Return in words the first of the head's weights that does not fit; empty where all do."""
    for key in (key for key in own if key in ends):
        if key not in weights:
            return f"{key.removeprefix(head)} is missing"
        if weights[key].shape != own[key].shape:
            return f"{key.removeprefix(head)} is {list(weights[key].shape)} for {list(own[key].shape)}"
    return ""


def _other_class(before: Sequence[str], now: Sequence[str]) -> str:
    """Return in words the first of as many classes that was another; empty where none was, or they are not known."""
    pairs = zip(before, now, strict=False)
    return next((f"class {place} is {old!r} for {new!r}" for place, (old, new) in enumerate(pairs) if old != new), "")
