"""Trained networks ready for use, by `polychrome.load`: they classify files, folders, arrays and tensors."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from polychrome.engine.channels.combinations import parse
from polychrome.engine.channels.names import ALL, SENSORS, SHUFFLED, listed
from polychrome.engine.data import sampling
from polychrome.engine.data.batches import Batch, normalise
from polychrome.engine.data.files import shards
from polychrome.engine.data.files.statistics import measure
from polychrome.engine.data.given import FEW, Apart, image_sets, located, of_pillow, refuse, together
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.opening import Opened, Wanted, are_photos
from polychrome.engine.data.readers.resizing import cropped, empty
from polychrome.engine.data.sets import listing
from polychrome.engine.data.sets.inspection import scale_of
from polychrome.engine.data.sets.sensors.naming import split
from polychrome.engine.data.units import far, far_tensors, summed_up
from polychrome.engine.errors import UserError
from polychrome.engine.evaluation import inputs
from polychrome.engine.metrics import likeliest
from polychrome.train.data import make_loader
from polychrome.train.finished import Source, opened
from polychrome.train.settings.variants import FILLED

if TYPE_CHECKING:
    from PIL.Image import Image

    Given = str | Path | np.ndarray | Tensor | Image

BATCH = 64  # images at once
NOT_FINITE = "the network's logits are not finite: look for values far from the training's, such as undeclared nodata"


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image.

    Attributes:
        name: the likeliest class; None where the image could not be classified.
        probability: the probability of this class, 0 to 1; None as well.
        probabilities: the probability of every class by name, the likeliest first.
        path: the file, as it was given or found; None for an array or a tensor.
        reason: in one line, why the image could not be classified.
    """

    name: str | None
    probability: float | None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    path: str | None = None
    reason: str | None = None


def load(
    source: str | Path, model: str | None = None, channels: str | None = None, device: str = "auto", workers: int = 1
) -> TrainedModel:
    """Return a trained network with everything that its images need: `predict` classifies files and arrays.

    Args:
        source: the folder of a run, a `best.pt`, wherever it lies, or the name of a network that comes with the
            package, such as "prism4_small-shapes". A file or folder of this name in the working directory wins.
        model: which of the run's models, by name; by default the most accurate one on the validation images.
            NAME+any_channels is a model NAME that was trained for a fixed number of channels, in an `AnyChannels`: it
            is shown the nearest channels in place of absent ones, and not zeros.
        channels: the combination of channels that images have, such as "RG" or "red+nir"; by default all. `predict`
            takes other ones.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or, of several GPUs, such as "cuda:1".
        workers: how many processes decode files, where a call has more than 64. More than one are started anew by each
            such call, and need the calls of a script to stand below `if __name__ == "__main__":`. A file that crashes
            its decoder then has a reason; with 1 files are decoded in this process, which such a file ends.

    Raises:
        UserError: there is no such run, checkpoint, pretrained network, model, channel or device, a file is damaged or
            the state of a training, or an argument is of another type.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(f"source must be a path or a pretrained network's name, got {type(source).__name__}")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError(f"workers must be an int of at least 1, got {workers!r}")
    return TrainedModel(opened(source, device, model), model, channels, workers)


class TrainedModel:
    """A trained network: `predict` classifies images, `preprocess` makes its input, and a call runs it on such input.

    Attributes:
        name: the model's name, with its variants.
        classes: the names of the classes, in the order of the logits; equal names are followed by their numbers.
        channels: the names of the channels it was trained on, in order.
        dtype: the type of values of its images, "uint8" or "float32".
        image_size: height and width in pixels that images are resized to.
        crop: the side of the central square that is kept of an image, as a share of its short side.
        device: where it runs.
        precision: at which it runs: the training's, or "fp32" where the device would only emulate the training's.
        arithmetic: what differs from the training's arithmetic, in words; None where nothing does.
        network: the `nn.Module`, in evaluation.
    """

    def __init__(self, source: Source, model: str | None = None, channels: str | None = None, workers: int = 1) -> None:
        self._workers = workers
        self.name = model or source.best()
        self._source, self._channels, self._parts = source, source.channels, {}
        self.channels, self.dtype, self.device = source.channels.names, source.dtype, source.device
        self.precision, self.arithmetic = source.precision, source.arithmetic
        self.classes = _distinct(source.class_names)
        self._default = source.own_channels if channels is None else channels
        self.combination, _, self.network = self._part(None)
        self._settings = replace(source.entry_settings(self.name), batch_size=BATCH)
        self.image_size, self.crop = self._settings.image_size, self._settings.eval_crop

    def __repr__(self) -> str:
        return (
            f"TrainedModel({self.name!r}, channels={listed(self.channels)}, classes={len(self.classes)}, "
            f"image_size={self.image_size}, device={self.device.type!r})"
        )

    @torch.no_grad()
    def __call__(self, x: Tensor, channels: str | None = None) -> Tensor:
        """Return logits [batch, classes] of x, float32 [batch, channels, size, size], as `preprocess` returns it.

        A channel of an image that is NaN throughout is absent: the network is shown the channels that the image has.

        Raises:
            UserError: the model has no such channels, or no network for them; x is of another type or shape, or lacks
                channels that are asked for.
        """
        combination, chosen, network = self._part(channels)
        wanted = (len(self.channels), self.image_size, self.image_size)
        if x.dtype != torch.float32 or x.shape[1:] != wanted:
            has = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            raise UserError(f"x must be float32 [batch, {', '.join(map(str, wanted))}], of preprocess, got {has}")
        x = x.to(self.device)
        present = ~x.isnan().all(3).all(2)
        if not present.any(1).all():
            raise UserError("x has an image without a single channel: all of it is NaN")
        everywhere = present.all(0).tolist()
        if absent := [self.channels[place] for place in chosen or () if not everywhere[place]]:
            if self._asked(channels) or self._source.has_several(self.name):
                raise UserError(f"x lacks {listed(absent)} of channels {combination}: give those of preprocess")
            chosen = None  # what each image has
        x = x.masked_fill(~present[:, :, None, None], 0.0)
        return self._logits(network, chosen, x, np.arange(len(x)), None if all(everywhere) else present)

    def preprocess(self, images: Given | Sequence[Given], channels: str | None = None) -> Tensor:
        """Return images as the network's input: cropped, resized and standardised, [batch, channels, size, size].

        Args:
            images: an image or several, as `predict` takes them.
            channels: the channels that arrays have, where these are not all. Give the same to the call, which then
                ignores the others.

        The result has all channels, float32; those that an image lacks are NaN, which the call takes for absent.

        Raises:
            UserError: as `predict`, and for every file that cannot be read.
        """
        if isinstance(images, str | Path):
            path = Path(images)
            return self._of_files(files_below(path) if _holds_images(path) else [path], channels)
        if _is_one(images):
            return self._standardised(*self._pixels(images, channels))
        found = [torch.empty(0, len(self.channels), self.image_size, self.image_size, device=self.device)]
        for named, some in groupby(_several(images), _is_named):
            if named:
                found.append(self._of_files(found_files(list(some)), channels))
            else:
                found += [self.preprocess(each, channels) for each in some]
        return torch.cat(found)

    def _of_files(self, files: Sequence[Path], channels: str | None) -> Tensor:
        """Return the images of files as `preprocess` does, in the order of the files."""
        places_of = _places(files)
        unique, apart = together(list(places_of), self._source.data)
        rows, given = {}, [files[places_of[file][0]] for file in unique]
        for numbers, part in self._sets(unique, apart, channels, partial(refuse, given)):
            places = [places_of[unique[number]] for number in numbers]
            for batch in self._batches(part):
                x = batch.standardised(self._channels)
                if batch.present is not None:
                    x = x.masked_fill(~batch.present[:, :, None, None], torch.nan)
                rows |= {place: row for index, row in zip(batch.indices, x, strict=True) for place in places[index]}
        return torch.stack([rows[place] for place in sorted(place for file in unique for place in places_of[file])])

    def predict(self, images: Given | Sequence[Given], channels: str | None = None) -> Prediction | list[Prediction]:
        """Return the prediction for an image, or a list of predictions for several images, a folder or a tar.

        Args:
            images: an image or a sequence of images. Each is the path of a file, or of a folder or tar, which stands
                for all images in it; a Pillow image; an array [height, width, channels] or [height, width]; or a tensor
                [channels, height, width]. Arrays [images, height, width, channels] and tensors [images, channels,
                height, width] are several. Values are as stored in the files that the network was trained on: 0..255 of
                type uint8, or float32 for measured data. Arrays have all channels of the network in its order, or
                those that `channels` names in the order of the name; arrays [height, width] are gray photos.
            channels: the combination of channels to use, such as "RG"; by default as given to `load`.

        Raises:
            UserError: a single image cannot be classified, there is no such file or channel, or an array does not fit.
                Of several images each that cannot be classified has a prediction with a reason.
        """
        is_path = isinstance(images, str | Path)
        if is_path and _holds_images(Path(images)):
            return self.predict_files(files_below(Path(images)), channels)
        if is_path:
            (found,) = self.predict_files([Path(images)], channels)
        elif _is_one(images):
            found = self._predict_array(images, channels)
        else:
            return self._predict_several(_several(images), channels)
        if found.reason is not None:
            raise UserError(f"{images if is_path else type(images).__name__}: {found.reason}")
        return found

    def _predict_several(self, many: list, channels: str | None) -> list[Prediction]:
        found = []
        for named, some in groupby(many, _is_named):
            if named:
                found += self.predict_files(found_files(list(some)), channels)
                continue
            for each in some:
                one = _is_one(each)
                found += (
                    [self._predict_array(each, channels)] if one else self._predict_several(_several(each), channels)
                )
        return found

    def predict_files(
        self,
        files: Sequence[Path],
        channels: str | None = None,
        say: Callable[[str], None] = warnings.warn,
        done: Callable[[int], None] = lambda images: None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> list[Prediction]:
        """Return a prediction for each file, in order; a file that cannot be classified has a reason.

        Where the training's images had a file for each channel, those of one image have one prediction, at the place
        and with the path of the first channel's.

        Args:
            say: called with lines on how files are read; by default these are warnings.
            done: called with the number of files that were classified, batch by batch.
            warn: called with lines on values that are far from those of the training; by default warnings.

        Raises:
            UserError: the model has no such channels, or no network for them.
        """
        places_of, found = _places(files), {}
        unique, apart = together(list(places_of), self._source.data)
        if not unique:
            return []
        self._tell_of_zeros(channels, say)

        def fail(number: int, reason: str) -> None:
            found[number] = Prediction(None, None, reason=reason)

        for numbers, images in self._sets(unique, apart, channels, fail, say, warn):
            number_of = dict(zip(images.splits["images"].paths, numbers, strict=True))
            for path, prediction in self._classified(images, channels, done, warn):
                found[number_of[path]] = prediction
        return [
            replace(found[number], path=str(files[place]))
            for place, number in sorted(
                (place, number) for number, file in enumerate(unique) for place in places_of[file]
            )
        ]

    def _classified(
        self, images: ImageSet, channels: str | None, done: Callable[[int], None], warn: Callable[[str], None]
    ) -> Iterator[tuple[str, Prediction]]:
        """Yield path and prediction of each image of a set."""
        paths, unread = images.splits["images"].paths, {}
        _, chosen, network = self._part(channels)
        if any(set(chosen or ()) - set(images.present(path)) for path in paths):
            chosen = None  # what each image has
        for batch in self._batches(images, unread.__setitem__, warn):
            x = batch.standardised(self._channels)
            logits = self._logits(network, chosen, x, batch.indices, batch.present)
            for index, each in zip(batch.indices, logits.float().cpu(), strict=True):
                yield paths[index], self._prediction(each)
            done(sum(len(images.files(paths[index])) for index in batch.indices))
        for path, reason in unread.items():
            yield path, Prediction(None, None, reason=reason)

    def _part(self, channels: str | None) -> tuple[str, tuple[int, ...] | None, nn.Module]:
        """Return the name of a combination of channels, its channels, and the network for it."""
        channels = self._default if channels is None else channels
        if not isinstance(channels, str | None):
            raise UserError(f"channels={channels!r}: wanted a name, such as {self._channels.full!r}")
        if channels in (ALL, SHUFFLED, SENSORS):
            raise UserError(f"an image has one combination of channels, not {channels!r}")
        if channels not in self._parts:
            known, sensors = self._channels, self._channels.sensors
            everything = {known.full: known.everything}
            wanted = everything if channels is None else parse((channels,), known.names, 0, sensors)
            if self._parts and not self._source.has_several(self.name):
                _, _, network = next(iter(self._parts.values()))
                ((label, chosen),) = wanted.items()
            else:
                ((part, network),) = self._source.networks(self.name, wanted)
                ((label, chosen),) = part.items()
            self._parts[channels] = label, chosen, network
        return self._parts[channels]

    def _named(self, channels: str | None) -> tuple[int, ...]:
        """Return the channels of an image that names none, in the order in which they are asked for.

        A network for one combination takes them in an order of its own.
        """
        wanted = self._default if channels is None else channels
        if wanted is None:
            return tuple(range(len(self.channels)))
        ((_, chosen),) = parse((wanted,), self.channels, 0, self._channels.sensors).items()
        return chosen

    def _logits(self, network, chosen, x: Tensor, indices: np.ndarray, present: Tensor | None) -> Tensor:
        shown = inputs(network, x, chosen, self._source.shown_as(self.name), indices, present)
        with torch.no_grad(), self._source.autocast():
            return network(*shown)

    def _prediction(self, logits: Tensor) -> Prediction:
        """Return the prediction of logits, float32 [classes] in host memory."""
        if likeliest(logits[None]) < 0:
            return Prediction(None, None, reason=NOT_FINITE)
        shares = logits.softmax(0)
        order = shares.argsort(descending=True, stable=True).tolist()
        probabilities = {self.classes[index]: shares[index].item() for index in order}
        name = self.classes[order[0]]
        return Prediction(name, probabilities[name], probabilities)

    def _tell_of_zeros(self, channels: str | None, say: Callable[[str], None]) -> None:
        """Say that the network is shown zeros for the channels that are not asked for, where it is."""
        _, chosen, _ = self._part(channels)
        absent = [name for place, name in enumerate(self.channels) if chosen and place not in chosen]
        if absent and self._source.protocol(self.name) == "zero-pad":
            say(f"without {listed(absent)}: {self._is_shown_zeros()}")

    def _is_shown_zeros(self) -> str:
        return f"{self.name} is shown zeros in place of absent channels, model {self.name}{FILLED} the nearest ones"

    def _predict_array(self, image: np.ndarray | Tensor | Image, channels: str | None) -> Prediction:
        self._tell_of_zeros(channels, warnings.warn)
        logits = self(self._standardised(*self._pixels(image, channels)), channels)
        return self._prediction(logits[0].float().cpu())

    def _standardised(self, pixels: np.ndarray, present: Sequence[int]) -> Tensor:
        """Return an image [height, width, channels] as the network's input, NaN but for the channels `present`."""
        (crop,) = sampling.center_crops(np.array([pixels.shape[:2]]), self.crop)
        absent = [place for place in range(len(self.channels)) if place not in present]
        batch = empty(1, self.image_size, len(self.channels), getattr(torch, self.dtype))
        batch[0] = cropped(pixels, crop, False, self.image_size)
        x = normalise(batch.to(self.device), self._channels)
        return x.index_fill(1, torch.tensor(absent, device=self.device), torch.nan) if absent else x

    def _pixels(self, image: np.ndarray | Tensor | Image, channels: str | None) -> tuple[np.ndarray, Sequence[int]]:
        """Return an image as [height, width, channels] with all channels, and the places of those that it has."""
        kind = type(image).__name__
        if 0 in (image.size if _is_pillow(image) else image.shape):
            raise UserError(f"{kind} has no pixel")
        if isinstance(image, Tensor):
            values = image.detach().cpu().movedim(0, -1).numpy()
        elif isinstance(image, np.ndarray):
            values = image
        else:
            return self._of_pillow(image, channels)
        if values.ndim == 2:
            gray = are_photos(self._channels, self.dtype) and not self._asked(channels)
            values = np.repeat(values[..., None], 3 if gray else 1, 2)
        self._check_values(values, kind)
        combination, count, named = self._part(channels)[0], len(self.channels), self._named(channels)
        if values.shape[2] == count:
            if len(named) == count and named != tuple(range(count)):
                raise UserError(
                    f"{kind} has all channels, and channels={combination!r} names them in another order: put them into "
                    f"the network's, {listed(self.channels)}, and leave channels= out"
                )
            self._warn_of_other_units(values, range(count), kind)
            return values, range(count)
        if values.shape[2] == 1 and (how := split(self._source.conventions)):
            raise UserError(f"{kind} has 1 channel, {how}: wanted all {count} channels")
        if values.shape[2] != len(named):
            wanted = f"{count} ({listed(self.channels)})"
            more = f" or {len(named)} ({combination})" if len(named) < count else ", or channels= that names fewer"
            raise UserError(f"{kind} has {values.shape[2]} channels, wanted {wanted}{more}")
        full = np.zeros((*values.shape[:2], count), values.dtype)
        full[..., list(named)] = values
        self._warn_of_other_units(full, named, kind)
        return full, named

    def _of_pillow(self, image: Image, channels: str | None) -> tuple[np.ndarray, Sequence[int]]:
        """Return a Pillow image as `_pixels` does."""
        combination, chosen, _ = self._part(channels)
        values, present, notes = of_pillow(image, self._source.data, self._asked(channels))
        absent = [self.channels[index] for index in chosen or range(len(self.channels)) if index not in present]
        if absent:
            raise UserError(f"{type(image).__name__} lacks {listed(absent)} of channels {combination}")
        for note in notes:
            warnings.warn(f"{type(image).__name__}: {note}", stacklevel=5)
        self._warn_of_other_units(values, present, type(image).__name__)
        return values, present

    def _check_values(self, values: np.ndarray, kind: str) -> None:
        """Raise UserError where values are not of the type, or of the kind, that the network was trained on."""
        before, now = self._source.conventions.scale, scale_of(values.dtype.name)
        if str(values.dtype) != self.dtype:
            has = f"{kind} has values of type {values.dtype}, the network was trained on {before or self.dtype}"
            if self.dtype == "uint8":
                raise UserError(f"{has} (0..255)")
            change = ".float()" if kind == "Tensor" else ".astype(np.float32)"
            alike = before in (None, now) or now == "fractions"
            raise UserError(f"{has}{f': give them as {change}, without scaling them' * alike}")
        if values.dtype.kind == "f":
            if not np.isfinite(values).all():
                raise UserError(
                    f"{kind} has values that are not finite: files' are replaced by the mean of their channel"
                )
            if before not in (None, now) and (values != np.rint(values)).any():
                raise UserError(f"{kind} has fractions, the network was trained on {before}: give them without scaling")

    def _warn_of_other_units(self, values: np.ndarray, present: Sequence[int], kind: str) -> None:
        if line := far(measure(values), {place: place for place in present}, self._channels, self.dtype):
            warnings.warn(f"{kind}: {line}", stacklevel=5)

    def _asked(self, channels: str | None) -> tuple[str, ...]:
        """Return the names of the channels that are asked for, in order; none where all are meant."""
        asked = channels is not None or self._default is not None
        return tuple(self.channels[place] for place in self._named(channels)) if asked else ()

    def _sets(
        self,
        files: Sequence[Path],
        apart: Apart,
        channels: str | None,
        fail: Callable[[int, str], None],
        say: Callable[[str], None] = warnings.warn,
        warn: Callable[[str], None] = warnings.warn,
    ) -> list[tuple[list[int], ImageSet]]:
        """Return sets of the usable files of one kind each, with the places of their images among `files`."""
        combination, chosen, network = self._part(channels)
        asked, sets, sensors = self._asked(channels), [], self._channels.sensors
        takes_any = getattr(network, "any_channels", False)
        for places, images in image_sets(files, self._source.data, asked, fail, warn, self._workers, apart):
            kept = []
            for row, (place, path) in enumerate(zip(places, images.splits["images"].paths, strict=True)):
                present, by_files = images.present(path), files[place] in apart
                # A file may have been forgotten: no image of the training had these channels alone.
                odd = by_files and sensors and present not in sensors
                wanted = range(len(self.channels)) if odd and not chosen else chosen or ()
                absent = [self.channels[index] for index in wanted if index not in present]
                if absent and (asked or self._source.has_several(self.name) or (by_files and not takes_any)):
                    more = f"give the files of all, such as that of {absent[0]}, or " * by_files
                    fail(place, f"lacks {listed(absent)} of channels {combination}: {more}name others by --channels")
                    continue
                if absent:
                    how = "the model is shown the channels that it has" if takes_any else self._is_shown_zeros()
                    say(f"{files[place]} lacks {listed(absent)}: {how}")
                kept.append(row)
            for note in images.notes:
                say(note)
            if kept:
                few = images.splits["images"].at(kept)
                sets.append(([places[row] for row in kept], replace(images, splits={"images": few})))
        return sets

    def _batches(
        self,
        images: ImageSet,
        unread: Callable[[str, str], None] | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> Iterator[Batch]:
        """Yield the images of a set, and warn of photos that are far from the training's, as `image_sets` of stacks."""
        paths, lines = images.splits["images"].paths, []
        workers = self._workers if self._workers > 1 and len(paths) > FEW else 0
        opened = Opened(images, Wanted("torch", self.device, workers=workers))
        with make_loader(opened, "images", self._settings, on_fault=unread) as loader:
            for batch in loader.epoch(0):
                if not images.stacks:
                    found = far_tensors(batch.images, self._channels, 255, False)
                    rows = zip(batch.indices, found, strict=True)
                    lines += [f"{images.root / paths[index]}: {line}" for index, line in rows if line]
                yield batch
        if line := summed_up(lines):
            warn(line)


def found_files(given: Sequence[str | Path]) -> list[Path]:
    """Return files, in place of each folder or tar the images in it, and of each pattern its matches, in order.

    A pattern has "*", "?" or "[", and is not itself the name of a file.

    Raises:
        UserError: there is no image in a folder or tar, a tar is damaged, or nothing matches a pattern.
    """
    found = []
    for each in given:
        path = Path(each)
        if _holds_images(path):
            found += files_below(path)
        elif glob.has_magic(str(each)) and not path.exists():
            matches = sorted(glob.glob(str(each), recursive=True))
            if not matches:
                raise UserError(f"{each}: no file has such a name")
            found += found_files(matches)
        else:
            found.append(path)
    return found


def _holds_images(path: Path) -> bool:
    """Return whether a path is that of a folder or of a tar, which stand for the images in them."""
    return path.is_dir() or (path.suffix == shards.SUFFIX and path.is_file())


def files_below(folder: Path) -> list[Path]:
    """Return all images below a folder or in a tar, sorted; raises UserError where there are none or it is damaged."""
    images = listing.every_image(folder)
    return sorted(images.root / path for path in images.splits["all"].paths)


def _places(files: Sequence[Path]) -> dict[Path, list[int]]:
    """Return the places among `files` of each file, `located`."""
    places: dict[Path, list[int]] = {}
    for place, file in enumerate(files):
        places.setdefault(located(Path(file)), []).append(place)
    return places


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of which equal ones are followed by their numbers, as often as makes all of them differ."""
    found, counts = [], Counter(names)
    for number, name in enumerate(names):
        own = name
        while counts[own] > (own == name):
            own += f" ({number})"
        counts[own] += own != name
        found.append(own)
    return tuple(found)


def _is_named(image: object) -> bool:
    """Return whether an image is given by its path."""
    return isinstance(image, str | Path)


def _is_one(image: object) -> bool:
    """Return whether an array, a tensor or a Pillow image is a single image."""
    if isinstance(image, Tensor):
        return image.dim() == 3
    return image.ndim in (2, 3) if isinstance(image, np.ndarray) else _is_pillow(image)


def _is_pillow(image: object) -> bool:
    from PIL.Image import Image

    return isinstance(image, Image)


def _several(images: object) -> list:
    """Return the images of a batch or a sequence."""
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim != 4:
            raise UserError(
                f"{type(images).__name__} has shape {list(images.shape)}: wanted an array [height, width, channels] or "
                "a tensor [channels, height, width], or several with the number of images before"
            )
        return list(images)
    if not isinstance(images, Sequence):
        raise UserError(f"{type(images).__name__} is no image: wanted a path, a Pillow image, an array or a tensor")
    return list(images)
