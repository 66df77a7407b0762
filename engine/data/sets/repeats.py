"""Equal files: in two splits of a set, with two labels, kept together where a set is divided, or known from a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from polychrome.engine.data.files import shards
from polychrome.engine.data.image_set import SPLITS, ImageSet
from polychrome.engine.data.sets.division import HOLDOUT, Alike, Grouping
from polychrome.engine.errors import UserError

HEAD = 4096  # bytes that are compared before whole files are
ORDER = ("train", HOLDOUT, *SPLITS[1:])  # a file that is in an earlier split is repeated in a later split


def grouping(root: Path, pattern: str | None, parts: Mapping[str, Mapping[str, str]] | None = None) -> Grouping:
    """Return a function from paths below `root` to names that equal and related files have in common.

    Related are files in whose paths the regular expression `pattern` finds the same: its first group, else its match.
    Of an image that has several files, `parts` (see `ImageSet`), all have to be equal. The function raises UserError
    where the pattern finds nothing in any path. Of paths that are not to be `divided` it has lines for the user alone.
    """

    def alike(paths: Sequence[str], divided: bool = True) -> Alike:
        related = _related(paths, pattern)
        notes = tuple(_of_groups(paths, related, pattern, divided)) if pattern else ()
        if not divided:
            return Alike({}, {}, notes)
        files = {path: tuple(parts[path].values()) if parts and path in parts else (path,) for path in paths}
        return Alike(_joined(paths, related, _equal(root, files)), _joined(paths, related), notes)

    return alike


def _of_groups(paths: Sequence[str], related: Mapping[str, str], pattern: str, divided: bool) -> Iterator[str]:
    """Yield lines for the user on the groups that a pattern finds; raises UserError where it finds none."""
    if not related:
        raise UserError(f"--group-by {pattern!r} finds nothing in any path, such as {paths[0]}")
    count = len(set(related.values()))
    yield f"{count:,} group{'s' * (count > 1)} by --group-by" + (", each in one split" if divided else "")
    if lacking := [path for path in paths if path not in related]:
        yield f"{len(lacking):,} of {len(paths):,} images are in no group by --group-by, such as {lacking[0]}"


def _related(paths: Iterable[str], pattern: str | None) -> dict[str, str]:
    """Return what a regular expression finds in each path that it matches: its first group, else its match."""
    found = [(path, match) for path in paths if pattern and (match := re.search(pattern, path))]
    return {path: match[match.re.groups and 1] or "" for path, match in found}


def _joined(paths: Sequence[str], *keys: Mapping[str, str]) -> dict[str, str]:
    """Return for each path the first of all paths that it is joined to by an equal key, at first or second hand."""
    parent = {path: path for path in paths}

    def top(path: str) -> str:
        while parent[path] != path:
            parent[path] = parent[parent[path]]
            path = parent[path]
        return path

    for each in keys:
        first: dict[str, str] = {}
        for path, key in each.items():
            parent[top(path)] = top(first.setdefault(key, path))
    return {path: top(path) for path in paths}


def _equal(root: Path, files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return a digest of each image whose files another image's may equal; files are read no further than needed.

    Images of a size of their own, or of first bytes of their own, are left out.
    """

    def each(path: str, how: Callable[[Path], object]) -> str:
        return " ".join(str(_read(root / file, how)) for file in files[path])

    sizes = _of_several({path: each(path, shards.size) for path in files})
    heads = _of_several({path: f"{size} {each(path, _head)}" for path, size in sizes.items()})
    return {path: each(path, _whole) for path in heads}


def _of_several(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the paths whose key others have too."""
    paths: dict[str, list[str]] = {}
    for path, key in keys.items():
        paths.setdefault(key, []).append(path)
    return {path: key for key, own in paths.items() if len(own) > 1 for path in own}


def _read(file: Path, how: Callable[[Path], object]) -> object:
    try:
        return how(file)
    except (OSError, ValueError):  # it will be rejected
        return file


def _head(file: Path) -> str:
    if f"{shards.SUFFIX}/" in str(file):
        return _whole(file)
    with open(file, "rb") as stream:
        return hashlib.sha256(stream.read(HEAD)).hexdigest()


def _whole(file: Path) -> str:
    return hashlib.sha256(shards.read_bytes(file)).hexdigest()


def notes(images: ImageSet, digests: Mapping[str, str], pattern: str | None = None) -> tuple[str, ...]:
    """Return lines for the user on files that are in two splits of a set, and on files with two labels.

    `digests` are the same for equal files alone; a file without a digest is equal to none. Of several splits that a
    file is in, each later split is told with the first. Files related by `pattern`, see `grouping`, are told likewise.
    """
    first: dict[str, tuple[str, str]] = {}  # split and path
    labels: dict[str, tuple[str, int]] = {}  # path and label
    repeated: dict[tuple[str, str], list[tuple[str, str]]] = {}
    differing: dict[str, tuple[str, int, str, int]] = {}
    for name in _in_order(images):
        split = images.splits[name]
        for path, label in zip(split.paths, split.labels, strict=True):
            if not (digest := digests.get(path)):
                continue
            earlier, twin = first.setdefault(digest, (name, path))
            if earlier != name:
                repeated.setdefault((name, earlier), []).append((path, twin))
            other, other_label = labels.setdefault(digest, (path, label))
            if other_label != label:
                differing.setdefault(digest, (other, other_label, path, label))
    lines = (_repeated(images, *splits, pairs) for splits, pairs in repeated.items())
    return (*lines, *_shared(images, pattern), *_differing(images, differing))


def fingerprints(images: ImageSet, split: str) -> np.ndarray:
    """Return 64 bits of the digest of each image of a split that has one, uint64 [images]."""
    digests = map(images.digests.get, images.splits[split].paths)
    return np.array([int(digest[:16], 16) for digest in digests if digest], np.uint64)


def trained_on(images: ImageSet, splits: Iterable[str], known: np.ndarray, trained: str) -> str:
    """Return in words how many images of some splits are those of `known` fingerprints; empty where none is.

    `trained` names what was trained on the images that are known.
    """
    counts = {split: int(np.isin(fingerprints(images, split), known).sum()) for split in splits}
    which = " and ".join(
        f"{count:,} of {len(images.splits[split].paths):,} images of {split}"
        for split, count in counts.items()
        if count
    )
    told = f"{which} are among those that {trained} was trained on: accuracy there says less about new images"
    return told if which else ""


def _in_order(images: ImageSet) -> list[str]:
    return sorted(images.splits, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _shared(images: ImageSet, pattern: str | None) -> Iterator[str]:
    """Yield a line for each split with images of groups that an earlier split has images of, too."""
    seen: set[str] = set()
    for name in _in_order(images):
        related = _related(images.splits[name].paths, pattern)
        if shared := [path for path, group in related.items() if group in seen]:
            count = f"{len(shared):,} of {len(images.splits[name].paths):,} images of {name}"
            yield f"{count} are of groups of --group-by that an earlier split has too, such as {related[shared[0]]}"
        seen.update(related.values())


def _repeated(images: ImageSet, split: str, earlier: str, pairs: list[tuple[str, str]]) -> str:
    path, twin = pairs[0]
    count = f"{len(pairs):,} of {len(images.splits[split].paths):,} images of {split}"
    which = "itself" if path == twin else twin
    return f"{count} are in {earlier} too, such as {path} ({which}): accuracy on {split} says less about new images"


def _differing(images: ImageSet, found: Mapping[str, tuple[str, int, str, int]]) -> tuple[str, ...]:
    if not found:
        return ()
    path, label, other, second = next(iter(found.values()))
    names = images.class_names
    count = f"{len(found):,} image{' has' if len(found) == 1 else 's have'} two labels"
    return (f"{count}, such as {path} ({names[label]}) and {other} ({names[second]})",)
