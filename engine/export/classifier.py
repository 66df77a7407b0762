"""The content of an export: a network, the standardisation of its input, and a description of both."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from polychrome import models
from polychrome.engine.channels.names import Channels
from polychrome.engine.data.units import far_tensor
from polychrome.engine.errors import UserError

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
    whole: whether the file takes whole images as they are stored, see `engine.export.save_whole`.
    made_for: the number of channels that the network was made for, where it is shown fewer; else 0.
    """

    model: str
    image_size: int
    classes: tuple[str, ...]
    channels: Channels
    dtype: str
    any_channels: bool
    crop: float
    options: dict = field(default_factory=dict)
    whole: bool = False
    made_for: int = 0

    @property
    def scale(self) -> int:
        """The divisor that makes input values of stored values."""
        return 255 if self.dtype == "uint8" else 1

    @property
    def shape(self) -> tuple[str | int, ...]:
        """The shape of the images; a word stands for any size from 1."""
        count, size = len(self.channels), self.image_size
        return ("batch", "height", "width", count) if self.whole else ("batch", count, size, size)

    @property
    def absent_channels(self) -> str:
        """What absent channels of the input are to hold, in words: a network without a mask reads them, too."""
        return "anything, where the mask is false" if self.any_channels else "the channel's mean"

    @property
    def values(self) -> str:
        """The values of the images, in words."""
        return "8-bit values / 255, 0..1" if self.dtype == "uint8" and not self.whole else f"as stored ({self.dtype})"

    def as_dict(self) -> dict:
        """Return the description with the inputs and the output in words, JSON-ready."""
        images = {"dtype": "float32", "shape": list(self.shape), "layout": "contiguous", "values": self.values}
        inputs = {"images": {**images, "absent_channels": self.absent_channels}}
        if self.any_channels:
            shape = ["batch", len(self.channels)]
            inputs["mask"] = {"dtype": "bool", "shape": shape, "values": "true where a channel is present"}
        output = {"dtype": "float32", "shape": ["batch", len(self.classes)]}
        return {**asdict(self), "inputs": inputs, "outputs": {"logits": output}, "torch": torch.__version__}

    def check(self, images: Tensor, mask: Tensor | None = None) -> None:
        """Raise UserError where images or mask are not of the types and shapes that the file takes.

        The formats check little of it: compiled code takes any memory for what it was compiled for.

        Args:
            images: float32 [batch, channels, size, size]; of a whole file `dtype` [batch, height, width, channels].
            mask: bool [batch, channels], of a model for any channels.
        """
        _check("pixels" if self.whole else "images", images, self.dtype if self.whole else "float32", self.shape)
        if not self.any_channels:
            if mask is not None:
                raise UserError(f"{self.model} takes no mask: absent channels hold {self.absent_channels}")
            return
        if mask is None:
            raise UserError(f"{self.model} takes a mask, too: bool [batch, channels], true where a channel is present")
        _check("mask", mask, "bool", (len(images), len(self.channels)))
        if not mask.any(1).all():
            raise UserError("mask must leave at least one channel of every image")

    def far_off(self, images: Tensor, mask: Tensor | None = None) -> str | None:
        """Return a line on the first image whose values are far from the training's; None without any.

        Args:
            images: [batch, channels, size, size], of a whole file [batch, height, width, channels]; `check` took them.
            mask: [batch, channels] bool; channels where it is false do not count.
        """
        by_channel = images.movedim(3, 1) if self.whole else images
        line = far_tensor(by_channel, self.channels, self.scale if self.whole else 1, self.dtype == "uint8", mask)
        return line and f"{'pixels' if self.whole else 'images'}: {line} Wanted: {self.values}"

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
            found = {"options": {}, "whole": False, "made_for": 0} | json.loads(text)
            values = {name: found[name] for name in cls.__dataclass_fields__}
            names, mean, std = (tuple(found["channels"][key]) for key in ("names", "mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no description of a model ({type(error).__name__}: {error})") from None
        return cls(**values | {"classes": tuple(found["classes"]), "channels": Channels(names, mean, std)})


def _check(name: str, given: Tensor, dtype: str, shape: tuple[str | int, ...]) -> None:
    got = type(given).__name__
    if isinstance(given, Tensor):
        got = f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
        if given.dtype == getattr(torch, dtype) and given.dim() == len(shape):
            pairs = zip(given.shape, shape, strict=True)
            if all(side == wanted if isinstance(wanted, int) else side > 0 for side, wanted in pairs):
                return
    raise UserError(f"{name} must be a tensor of {dtype} [{', '.join(map(str, shape))}], got {got}")


class Warner:
    """Warns once of images whose values are far from those of the training, which the result would not show."""

    def __init__(self, description: Description) -> None:
        self._description, self._warned = description, False

    def __call__(self, images: Tensor, mask: Tensor | None = None) -> None:
        hidden = torch._C._is_tracing() or torch._C._are_functorch_transforms_active() or images.is_meta
        if self._warned or hidden:
            return
        if line := self._description.far_off(images, mask):
            self._warned = True
            warnings.warn(line, stacklevel=3)


class Exported:
    """An exported file, loaded: called as (images) or (images, mask), it returns what the file computes.

    Attributes:
        description: what the file says of the model.
    """

    def __init__(self, run: Callable[..., Tensor], description: Description) -> None:
        self._run, self.description, self._warn = run, description, Warner(description)

    def __call__(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits, or probabilities of whole images, [batch, classes].

        Values far from the training's are warned of, once.

        Raises:
            UserError: images or mask are others than the description says, see `Description.check`.
        """
        self.description.check(images, mask)
        self._warn(images, mask)
        return self._run(images) if mask is None else self._run(images, mask)


class Classifier(nn.Module):
    """A network in evaluation that standardises its own input; its weights stand under `model.`."""

    def __init__(self, model: nn.Module, description: Description):
        super().__init__()
        self.model = model
        self.description, self._warn = description, Warner(description)
        statistics = torch.tensor([description.channels.mean, description.channels.std], dtype=torch.float32)
        self.register_buffer("statistics", statistics[:, :, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def create(cls, description: Description) -> Classifier:
        """Return an untrained classifier."""
        count = len(description.classes), description.made_for or len(description.channels)
        model = models.create(description.model, *count, description.image_size, **description.options)
        return cls(model, description)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [batch, channels, size, size], float32, valued as `description` says, to logits [batch, classes].

        mask: [batch, channels] bool, true where a channel is present, for models that take any channels.

        Values far from the training's are warned of, once, outside of `torch.compile`.

        Raises:
            UserError: images or mask are others than the description says, see `Description.check`.
        """
        if not torch.compiler.is_exporting():
            self.description.check(images, mask)
        if not torch.compiler.is_compiling():
            self._warn(images, mask)
        mean, std = self.statistics
        x = (images - mean) / std
        return self.model(x) if mask is None else self.model(x, mask)
