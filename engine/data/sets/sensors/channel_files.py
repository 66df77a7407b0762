"""Images that have a file for each of their channels, such as site_w1.png to site_w5.png."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from polychrome.engine.data.files import kinds, stacks
from polychrome.engine.data.files.statistics import Moments
from polychrome.engine.data.sets import tree
from polychrome.engine.data.sets.inspection import Stack, Verdict
from polychrome.engine.data.sets.layouts.labelled import Labelled, Places, in_order
from polychrome.engine.errors import UserError

OPTION = "--channel-files"
Parts = dict[str, dict[str, str]]  # by image the file of each channel by name


def joined(root: Path, found: Mapping[str, str], images: Labelled, pattern: str) -> tuple[Labelled, Parts]:
    """Return labelled files below `root` as images that have a file for each channel, and these files.

    The regular expression `pattern` finds the name of a file's channel in its path: its first group, else its match.
    Files are of one image where the rest of their paths, without the suffix, is the same. All such files among those
    `found` count, whether or not each is labelled; the name of an image without its channels labels it too, as a table
    of images has it. An image goes by the path of its first channel's file.

    Raises:
        UserError: no file has a channel in its path, or one has several; files of one image have two labels or the same
            channel; the name of an image is that of several; or a channel's name is not usable.
    """
    keys, listed = {}, dict.fromkeys(path for every in images.splits.values() for path, _ in every)
    for path in [*listed, *(path for path, kind in found.items() if kind == tree.IMAGE and path not in listed)]:
        told = _told(path, pattern)
        if len(told) > 1:
            several = " and ".join(repr(channel) for _, channel in told[:2])
            raise UserError(f"{OPTION} {pattern!r} finds the channels {several} in {path}: make it find one")
        if told:
            (keys[path],) = told
    image_of = {path: key for path, (key, _) in keys.items()}
    places = Places(root, dict.fromkeys(image_of.values(), tree.IMAGE))
    rows, unnamed = {}, {}
    for split, every in images.splits.items():
        rows[split] = []
        for path, label in dict.fromkeys(every):
            known = path in found or path in image_of
            key = image_of.get(path) if known else places.anywhere(OPTION, path, "", split)
            if key in places:
                rows[split].append((path, key, label))
            else:
                unnamed[path] = None
    unnamed = list(unnamed)
    if len(unnamed) == len(listed):
        raise UserError(f"{OPTION} {pattern!r} finds no channel in any path, such as {unnamed[0]}")
    wanted = dict.fromkeys(key for every in rows.values() for _, key, _ in every)
    parts_of: dict[str, dict[str, str]] = {key: {} for key in wanted}
    for path, (key, channel) in keys.items():
        if key in wanted and (other := parts_of[key].setdefault(channel, path)) != path:
            raise UserError(f"{OPTION}: {other} and {path} are both channel {channel!r} of one image")
    names = in_order({channel for parts in parts_of.values() for channel in parts})
    stacks.checked_names((f"{OPTION} {pattern!r}", name) for name in names)
    ordered = {key: _ordered(parts, names) for key, parts in parts_of.items()}
    path_of = {key: next(iter(parts.values())) for key, parts in ordered.items()}
    splits = {split: _images(every, path_of) for split, every in rows.items()}
    notes = images.notes
    if all(len(parts) == 1 for parts in parts_of.values()):
        notes += (f"{OPTION} {pattern!r} joins no files: each image has one, such as {next(iter(path_of.values()))}",)
    if unnamed:
        count = f"{len(unnamed):,} file{'s' * (len(unnamed) > 1)}"
        notes += (f"{count} without a channel in the path ({OPTION}), such as {unnamed[0]}: not used",)
    return replace(images, splits=splits, notes=notes), {path_of[key]: parts for key, parts in ordered.items()}


def together(paths: Sequence[str], pattern: str) -> Parts:
    """Return the images that files make which nobody has labelled, by the path of the first channel's file of each.

    Files with no channel or several in the path are left out, and so are those of one image that have the same channel.
    """
    images: dict[str, dict[str, str]] = {}
    several: set[str] = set()
    for path in paths:
        if len(told := _told(path, pattern)) != 1:
            continue
        ((key, channel),) = told
        if images.setdefault(key, {}).setdefault(channel, path) != path:
            several.add(key)
    names = in_order({channel for parts in images.values() for channel in parts})
    ordered = [_ordered(parts, names) for key, parts in images.items() if key not in several]
    return {next(iter(parts.values())): parts for parts in ordered}


def _told(path: str, pattern: str) -> list[tuple[str, str]]:
    """Return each channel found in a file's path, after the path without it, wherever it is found, and the suffix."""
    of_channel: dict[str, list[re.Match]] = {}
    for match in re.finditer(pattern, path):
        of_channel.setdefault(match[match.re.groups and 1] or "", []).append(match)
    told = []
    for channel, matches in of_channel.items():
        rest = path
        for match in reversed(matches):
            rest = rest[: match.start()] + rest[match.end() :]
        stem, suffix = posixpath.splitext(rest)
        told.append((stem if suffix.lower() in kinds.SUFFIXES else rest, channel))
    return told


def _ordered(parts: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: parts[name] for name in names if name in parts}


def _images(rows: Sequence[tuple[str, str, int]], path_of: Mapping[str, str]) -> list[tuple[str, int]]:
    labels: dict[str, tuple[int, str]] = {}
    for path, key, label in rows:
        known, first = labels.setdefault(key, (label, path))
        if known != label:
            raise UserError(f"{OPTION}: {first} and {path} are of one image, but have two labels")
    return [(path_of[key], label) for key, (label, _) in labels.items()]


def assembled(verdicts: Mapping[str, Verdict], parts: Mapping[str, Mapping[str, str]]) -> dict[str, Verdict]:
    """Return the verdict on each image of `parts`, given the verdicts on their files."""
    return {
        path: _assembled({name: (file, verdicts[file]) for name, file in files.items()})
        for path, files in parts.items()
    }


def _assembled(files: Mapping[str, tuple[str, Verdict]]) -> Verdict:
    found: dict[str, Stack] = {}
    for name, (file, verdict) in files.items():
        if not isinstance(verdict, Stack):
            return f"{file}, channel {name}: {verdict if isinstance(verdict, str) else 'a photo'}"
        if verdict.channels != 1:
            return f"{file}, channel {name}: {verdict.channels} channels, wanted one"
        found[file] = verdict
    (first, example), *others = found.items()
    for file, stack in others:
        if (here := _kind(example)) != (there := _kind(stack)):
            return f"its files differ: {first} has {here}, {file} has {there}"
    every = list(found.values())
    digests = " ".join(f"{name} {stack.digest}" for name, stack in zip(files, every, strict=True))
    return Stack(
        example.height,
        example.width,
        example.dtype,
        example.stored,
        Moments(np.concatenate([stack.moments.values for stack in every], 1)),
        max(stack.highest for stack in every),
        tuple(files),
        sum(stack.missing for stack in every),
        apart=next((stack.apart._replace(channel=i) for i, stack in enumerate(every) if stack.apart), None),
        digest=hashlib.sha256(digests.encode("utf-8", "backslashreplace")).hexdigest()[:24],
    )


def _kind(stack: Stack) -> str:
    return f"{stack.height} x {stack.width} pixels of {stack.scale}"
