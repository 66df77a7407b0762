"""A labelled set of images: the files of each split, with sizes, channels and type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.data.accounting import Account
from polychrome.engine.data.arrangement import Arrangement
from polychrome.engine.data.conventions import Conventions
from polychrome.engine.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Images of one split: posix paths relative to the root, their labels and, once scanned, (height, width)."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def of(cls, rows: Iterable[tuple]) -> Split:
        """Return the split of some rows, at least one: path and label of each image, and its size once scanned."""
        return cls(*map(tuple, zip(*rows, strict=True)))

    def at(self, places: Sequence[int]) -> Split:
        """Return the split of the images at some places, in their order; it may be left empty."""
        columns = (self.paths, self.labels, self.sizes)
        return Split(*(column and tuple(column[place] for place in places) for column in columns))


@dataclass(frozen=True)
class ImageSet:
    """A labelled image set: `splits` has the keys train, val and test, and holdout where images are held out.

    Its files are photos, read as uint8 RGB, or stacks (see `engine.data.files.stacks`). Once the files are scanned are
    known: the `channels` of stacks and their `dtype`, "uint8" or "float32"; the `encodings` of photos by path (see
    `engine.data.files.decode.inspected`); the photos that DALI does not decode as Pillow does, `by_pillow`; and
    `digests` by path, the same for equal files alone.

    Where an image has a file for each of its channels, the image goes by the path of one of them, and `parts` has the
    file of each channel by name. Stacks that do not have all channels of the set, in its order and in one file, have
    `arrangements` by path once they are scanned.

    `conventions` say what the files were taken for, `account` what became of every file that is there, and `notes` are
    lines for the user on how the set was read. `first_label` is what the user's first label was before it became 0: 0
    or 1; None where classes have names instead.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    channels: Channels = RGB
    dtype: str = "uint8"
    stacks: bool = False
    encodings: Mapping[str, str] = field(default_factory=dict)
    by_pillow: frozenset[str] = frozenset()
    digests: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    arrangements: Mapping[str, Arrangement] = field(default_factory=dict)
    conventions: Conventions = field(default_factory=Conventions)
    account: Account | None = None
    notes: tuple[str, ...] = ()
    first_label: int | None = None

    @property
    def paths(self) -> list[str]:
        """The path of each image of all splits, once."""
        return list(dict.fromkeys(path for split in self.splits.values() for path in split.paths))

    def files(self, path: str) -> tuple[str, ...]:
        """Return the files of an image of the set."""
        return tuple(self.parts[path].values()) if path in self.parts else (path,)

    def present(self, path: str) -> tuple[int, ...]:
        """Return the channels that an image of the scanned set has, ascending."""
        arrangement = self.arrangements.get(path)
        return tuple(range(len(self.channels))) if arrangement is None else arrangement.present


def having(images: ImageSet, split: str, chosen: Iterable[int]) -> Split:
    """Return the images of a split of a scanned set that have all channels `chosen`; the split may be left empty."""
    wanted, rows = set(chosen), images.splits[split]
    if not images.arrangements:
        return rows
    return rows.at([place for place, path in enumerate(rows.paths) if wanted <= set(images.present(path))])


def sizes_of(images: ImageSet) -> dict[str, tuple[int, int]]:
    """Return the (height, width) of each image of all splits by path.

    Raises:
        ValueError: the set has not been scanned.
    """
    if any(split.sizes is None for split in images.splits.values()):
        raise ValueError("the set has no image sizes: pass it through scan.scan and scan.apply first")
    return {path: size for split in images.splits.values() for path, size in zip(split.paths, split.sizes, strict=True)}


def without(images: ImageSet, paths: Iterable[str]) -> ImageSet:
    """Return a scanned set without some of its files.

    Raises UserError where a split is left empty, or a class without an image to train on.
    """
    gone = set(paths)
    splits = {}
    for name, split in images.splits.items():
        rows = zip(split.paths, split.labels, split.sizes, strict=True)
        usable = [row for row in rows if row[0] not in gone]
        if not usable:
            raise UserError(f"no usable image in {name} of {images.root}: none of {len(split.paths)} could be read")
        splits[name] = Split.of(usable)
    return with_classes(images, replace(images, splits=splits), dict.fromkeys(gone, "it could not be read"))


def with_classes(listed: ImageSet, usable: ImageSet, reasons: Mapping[str, str]) -> ImageSet:
    """Return the usable part of a listed set, in which every class that had images to train on has some.

    Raises UserError for another, with the first of the reasons why files cannot be used.
    """
    if "train" in usable.splits:
        train, left = listed.splits["train"], set(usable.splits["train"].labels)
        if lost := [path for path, label in zip(train.paths, train.labels, strict=True) if label not in left]:
            classes = sorted(set(train.labels) - left)
            name, first = listed.class_names[classes[0]], lost[0]
            count = f"class {name!r} has" if len(classes) == 1 else f"{len(classes):,} classes, such as {name!r}, have"
            why = f"all {len(lost):,} were rejected, the first is {first}: {reasons.get(first, 'not scanned')}"
            raise UserError(
                f"{count} no usable image to train on in {listed.root}: {why}: mend the files or remove the class"
            )
    return usable


def lacking(images: ImageSet) -> tuple[str, ...]:
    """Return lines for the user on classes without an image in a split, of a set that is trained on."""
    lines = []
    for split, rows in images.splits.items() if "train" in images.splits else ():
        absent = sorted(set(range(len(images.class_names))) - set(rows.labels))
        if absent:
            name, count = images.class_names[absent[0]], len(absent)
            which = f"class {name!r} has" if count == 1 else f"{count:,} classes, such as {name!r}, have"
            lines.append(f"{which} no image in {split}")
    return tuple(lines)
