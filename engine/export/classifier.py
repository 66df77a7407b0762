"""The content of an export: a network, the standardisation of its input, and a description of both."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from polychrome import models
from polychrome.engine.channels.names import Channels

KEY = "polychrome"  # of the description in the metadata of an exported file


@dataclass(frozen=True)
class Description:
    """A trained model's description, for users who have only the exported file.

    model: its registered name.
    image_size: height and width of the images in pixels.
    classes: the names, in the order of the logits.
    channels: names, means and deviations of the channels, in order.
    dtype: of the stored images it was trained on; with "uint8" the input's values are these / 255, else as stored.
    any_channels: whether the model is told by a mask which channels are present.
    crop: the side of the central square that was cropped and resized for tests, as a share of the short side.
    options: further arguments of `models.create`; JSON values.
    """

    model: str
    image_size: int
    classes: tuple[str, ...]
    channels: Channels
    dtype: str
    any_channels: bool
    crop: float
    options: dict = field(default_factory=dict)

    @property
    def scale(self) -> int:
        """The divisor that makes input values of stored values."""
        return 255 if self.dtype == "uint8" else 1

    @property
    def absent_channels(self) -> str:
        """What absent channels of the input are to hold, in words: a network without a mask reads them, too."""
        return "anything, where the mask is false" if self.any_channels else "the channel's mean"

    def as_dict(self) -> dict:
        """Return the description with the inputs and the output in words, JSON-ready."""
        values = "8-bit values / 255, 0..1" if self.dtype == "uint8" else f"as stored ({self.dtype})"
        shape = ["batch", len(self.channels), self.image_size, self.image_size]
        images = {"dtype": "float32", "shape": shape, "layout": "contiguous", "values": values}
        inputs = {"images": {**images, "absent_channels": self.absent_channels}}
        if self.any_channels:
            inputs["mask"] = {"dtype": "bool", "shape": shape[:2], "values": "true where a channel is present"}
        output = {"dtype": "float32", "shape": ["batch", len(self.classes)]}
        return {**asdict(self), "inputs": inputs, "outputs": {"logits": output}, "torch": torch.__version__}

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(self.as_dict())

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Return the description in an exported file.

        Raises:
            ValueError: `text` is not a description.
        """
        try:
            found = {"options": {}} | json.loads(text)
            values = {name: found[name] for name in cls.__dataclass_fields__}
            names, mean, std = (tuple(found["channels"][key]) for key in ("names", "mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no description of a model ({type(error).__name__}: {error})") from None
        return cls(**values | {"classes": tuple(found["classes"]), "channels": Channels(names, mean, std)})


class Classifier(nn.Module):
    """A network in evaluation that standardises its own input; its weights stand under `model.`."""

    def __init__(self, model: nn.Module, description: Description):
        super().__init__()
        self.model = model
        self.description = description
        statistics = torch.tensor([description.channels.mean, description.channels.std], dtype=torch.float32)
        self.register_buffer("statistics", statistics[:, :, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def create(cls, description: Description) -> Classifier:
        """Return an untrained classifier."""
        count = len(description.classes), len(description.channels)
        model = models.create(description.model, *count, description.image_size, **description.options)
        return cls(model, description)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [batch, channels, height, width], valued as `description` says, to logits [batch, classes].

        mask: [batch, channels] bool, true where a channel is present, for models that take any channels.
        """
        mean, std = self.statistics
        x = (images - mean) / std
        return self.model(x) if mask is None else self.model(x, mask)
