"""The format safetensors: the network's weights, under the names of its state dict, and its description."""

from __future__ import annotations

from pathlib import Path

from polychrome.engine.export.classifier import KEY, Classifier, Description

PACKAGES = ("safetensors",)


def write(classifier: Classifier, path: Path) -> None:
    """Write the weights of the network alone: `models.create(...)` takes them."""
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in classifier.model.state_dict().items()}
    save_file(weights, str(path), metadata={KEY: classifier.description.to_json()})


def read(path: Path) -> Classifier:
    """Return the `Classifier`, on the CPU."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        description = Description.from_json(file.metadata()[KEY])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    classifier = Classifier.create(description)
    classifier.model.load_state_dict(weights)
    return classifier
