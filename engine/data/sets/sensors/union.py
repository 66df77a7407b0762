"""One set of channels for images that have different channels: their union, and how each image holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from polychrome.engine.channels.names import SENSOR, Channels, listed, sensor
from polychrome.engine.data.arrangement import Arrangement, Form
from polychrome.engine.data.conventions import APART, BESIDE, TOGETHER, Taken, Trained
from polychrome.engine.data.files import stacks
from polychrome.engine.data.files.pixels import why_unusable
from polychrome.engine.data.files.statistics import Moments, combine
from polychrome.engine.data.image_set import ImageSet
from polychrome.engine.data.sets.inspection import Stack
from polychrome.engine.data.sets.layouts.labelled import in_order
from polychrome.engine.data.sets.sensors import channel_files, descriptions, naming
from polychrome.engine.data.sets.sensors.descriptions import Described
from polychrome.engine.errors import UserError

FEW = 8  # different lists of names are not suspicious
MOST_LINES = 8  # on sensors
Names = Mapping[str, tuple[str, ...]]  # of each image's channels, in its order


def of_stacks(
    images: ImageSet, found: Mapping[str, Stack], trained: Trained | None = None, asked: tuple[str, ...] = ()
) -> ImageSet:
    """Return a set of stacks with their channels, and how each of its images holds them.

    An image's channels are those that `channels.csv` says, else `channels.txt`, else its own file or files; without any
    names they are numbers. The set has all channels that some image has. A channel without any value in an image is
    one that the image lacks.

    Mean and deviation of the channels are measured over the training images, or over all images where there is no
    training split, unless the images are for a model that is `trained`: they then have its channels. Which they are
    `naming.of_model` says; files without names may have those that are `asked` for.

    Raises:
        UserError: names and numbers of channels do not agree, a channel is in no training image, or the images have
            other channels than the trained model.
    """
    described = descriptions.read(images.root, found)
    given = _given(images, found, described)
    images = replace(images, notes=(*images.notes, *descriptions.unmatched(images.root, found)))
    turned = [path for path, stack in found.items() if naming.moved(stack.names or stack.told, given[path])]
    if turned:
        first, count = turned[0], f"{len(turned):,} file{'s' * (len(turned) > 1)} such as {turned[0]}"
        source = descriptions.FILE if described else stacks.NAMES_FILE
        orders = f"{listed(given[first])} in {source}, {naming.in_words(found[first])} in {count}"
        images = replace(images, notes=(*images.notes, f"channels are {orders}: the former is taken"))
    if trained is None:
        channels, names = None, _or_numbers(images, found, given)
    else:
        channels, names = trained.channels, _of_model(images, found, given, described, trained, asked)
        images = replace(images, notes=(*images.notes, *_taken_otherwise(found, given, names)))
    images = replace(images, notes=(*images.notes, *_not_used(found, given, names)))
    union = channels.names if channels else _union(images, names, described)
    arrangements = _arrangements(images, found, names, union, described or {})
    if channels is None:
        channels = _measured(images, found, arrangements, union)
        files = _files(images, found, names, described or {})
        images = replace(images, conventions=naming.conventions(images.conventions.scale, files, union))
    counted = Counter(
        arrangements[path].present if path in arrangements else tuple(range(len(union))) for path in found
    )
    sensors = tuple(sorted(counted, key=lambda present: (-counted[present], -len(present), present)))
    sensors = () if sensors == (tuple(range(len(union))),) else sensors
    return replace(images, channels=replace(channels, sensors=sensors), arrangements=arrangements)


def _given(images: ImageSet, found: Mapping[str, Stack], described: Mapping[str, Described] | None) -> Names:
    """Return the names of each image's channels as far as they are known, else none."""
    for_all = stacks.channel_names(images.root)
    for other in [stacks.NAMES_FILE] * (for_all is not None) + [channel_files.OPTION] * bool(images.parts):
        if described is not None:
            raise UserError(f"{images.root} has {descriptions.FILE} and {other}: wanted one of the two")
    if for_all is None:
        return {path: _checked(path, stack, (described or {}).get(path)) for path, stack in found.items()}
    for path, stack in found.items():
        if stack.channels != len(for_all):
            file = images.root / stacks.NAMES_FILE
            raise UserError(f"{file}:{len(for_all)}: names {len(for_all)} channels, but {path} has {stack.channels}")
    return dict.fromkeys(found, for_all)


def _checked(path: str, stack: Stack, described: Described | None) -> tuple[str, ...]:
    """Return the names that a line gives an image's channels, else its own; raises UserError for another number."""
    if described is None:
        return stack.names
    if len(described.names) != stack.channels:
        counts = f"names {len(described.names)} channels, but {path} has {stack.channels}"
        beside = f"; the names of channels that lie side by side are separated by {descriptions.BESIDE}"
        raise UserError(f"{described.where}: {counts}{beside * (stack.channels == 1)}")
    return described.names


def _or_numbers(images: ImageSet, found: Mapping[str, Stack], names: Names) -> Names:
    """Return names that are known of every image, or numbers where none has names and all have as many channels."""
    unnamed = next((path for path in found if not names[path]), None)
    if unnamed is None:
        return names
    hint = f"{descriptions.FILE}, with lines such as folder,red+green+nir, says which channels a file has"
    if named := next((path for path in found if names[path]), None):
        has = f"{found[unnamed].channels} channels without names"
        if told := found[unnamed].told:
            has = f"{naming.in_words(found[unnamed])}, which are no names, as {why_unusable(told)}"
        raise UserError(f"{images.root}: {unnamed} has {has}, {named} has {', '.join(names[named])}: {hint}")
    first, example = next(iter(found.items()))
    for path, stack in found.items():
        if stack.channels != example.channels:
            counts = f"{first} has {example.channels} channels, {path} has {stack.channels}"
            axis = f"{stacks.NAMES_FILE}, with a line for each, tells which axis has them"
            raise UserError(f"{images.root}: {counts}: where numbers differ, {hint}; where they do not, {axis}")
        if stack.told != example.told:
            both = f"{first} has {naming.in_words(example)}, {path} has {naming.in_words(stack)}"
            why = why_unusable(stack.told or example.told)
            raise UserError(f"{images.root}: {both}, which cannot be put together by name, as {why}: {hint}")
    return dict.fromkeys(found, tuple(map(str, range(example.channels))))


def _of_model(
    images: ImageSet,
    found: Mapping[str, Stack],
    given: Names,
    described: Mapping[str, Described] | None,
    trained: Trained,
    asked: tuple[str, ...],
) -> Names:
    """Return the names of each image's channels, which are among those of a model; raises UserError for others."""
    for_all = stacks.channel_names(images.root) is not None
    at_home = trained.root is not None and trained.root.resolve() == images.root.resolve()
    names = {}
    for path, stack in found.items():
        known = given[path] if for_all or path in (described or {}) or path in images.parts else None
        names[path] = naming.of_model(images.root / path, stack, known, trained, asked, at_home)
    return names


def _taken_otherwise(found: Mapping[str, Stack], given: Names, names: Names) -> Iterator[str]:
    """Yield lines for the user on images whose channels are others than they are named."""
    other = [path for path in found if given[path] and given[path] != names[path]]
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for path in other:
        alike.setdefault((given[path], names[path]), []).append(path)
    for (own, taken), paths in alike.items():
        line = f"{listed(own)} are taken as {listed(taken)}"
        count = f"{len(paths):,} image{'s' * (len(paths) > 1)} such as {paths[0]}"
        if set(own).isdisjoint(taken):
            yield f"none of the model's channels is named in {count}: {line}, in this order"
        else:
            yield f"channels of {count} are named otherwise than they were in training: {line}, as there"


def _not_used(found: Mapping[str, Stack], given: Names, names: Names) -> Iterator[str]:
    """Yield a line for the user on images that have names of channels in which one is unusable."""
    paths = [path for path, stack in found.items() if stack.told and not given[path]]
    if paths:
        first = found[paths[0]]
        count = f"{len(paths):,} image{'s' * (len(paths) > 1)} such as {paths[0]}"
        taken = f"{naming.in_words(first)} are taken as {listed(names[paths[0]])}"
        yield f"names of channels in {count} are not used, as {why_unusable(first.told)}: {taken}, in this order"


def _files(
    images: ImageSet, found: Mapping[str, Stack], names: Names, described: Mapping[str, Described]
) -> Iterator[Taken]:
    """Yield what each file was taken for."""
    for path, stack in found.items():
        if path in images.parts:
            yield Taken((), names[path], APART)
        else:
            beside = path in described and described[path].form.side_by_side
            yield Taken(stack.names or stack.told, names[path], BESIDE if beside else TOGETHER)


def _union(images: ImageSet, names: Names, described: Mapping[str, Described] | None) -> tuple[str, ...]:
    """Return the channels of the set in order; raises UserError where each image has names of its own."""
    lists = Counter(names.values())
    occurring = {name for own in lists for name in own}
    if described is not None:
        order = descriptions.names(images.root)
    elif images.parts:
        order = in_order(occurring)
    else:
        order = ()
    longest = sorted(lists, key=len, reverse=True)
    union = tuple(dict.fromkeys(name for own in (order, *longest) for name in own if name in occurring))
    counts: Counter[str] = Counter()
    for own, count in lists.items():
        counts.update(dict.fromkeys(own, count))
    if len(lists) > FEW and 2 * sum(count == 1 for count in counts.values()) > len(union):
        first, second = list(names.items())[:2]
        both = "; ".join(f"{path} has {', '.join(own)}" for path, own in (first, second))
        raise UserError(
            f"{images.root}: the names of channels differ from image to image: {both}: "
            f"{stacks.NAMES_FILE}, with a line for each channel, names them for all"
        )
    return union


def _arrangements(
    images: ImageSet,
    found: Mapping[str, Stack],
    names: Names,
    union: tuple[str, ...],
    described: Mapping[str, Described],
) -> dict[str, Arrangement]:
    """Return how images hold the channels of the set, of those that do not hold all in order and in one file."""
    place, known, arrangements = {name: number for number, name in enumerate(union)}, {}, {}
    for path, stack in found.items():
        lost = tuple(np.flatnonzero(stack.moments.counts == 0).tolist()) if stack.missing else ()
        line = described.get(path)
        form = Form(stack.channels, line is not None and line.form.side_by_side)
        files = tuple(images.parts[path].values()) if path in images.parts else ()
        key = names[path], lost, form, files
        if key not in known:
            sources = [-1] * len(union)
            for number, name in enumerate(names[path]):
                if number not in lost:
                    sources[place[name]] = number
            known[key] = Arrangement(tuple(sources), form, files)
        if files or form.side_by_side or known[key].sources != tuple(range(len(union))):
            arrangements[path] = known[key]
    return arrangements


def _measured(
    images: ImageSet, found: Mapping[str, Stack], arrangements: Mapping[str, Arrangement], union: tuple[str, ...]
) -> Channels:
    paths = images.splits["train"].paths if "train" in images.splits else found
    everything = tuple(range(len(union)))
    by_sources: dict[tuple[int, ...], list[Moments]] = {}
    for path in paths:
        sources = arrangements[path].sources if path in arrangements else everything
        by_sources.setdefault(sources, []).append(found[path].moments)
    parts = [_placed(combine(own), sources) for sources, own in by_sources.items()]
    whole = combine(parts) if len(parts) > 1 else parts[0]
    if len(empty := np.flatnonzero(whole.counts == 0)):
        name = union[empty[0]]
        raise UserError(f"{images.root}: channel {name} has no value in any training image: leave it out")
    example = next(iter(found.values()))
    mean, std = whole.scaled(255 if example.dtype == "uint8" else 1)
    return Channels(union, tuple(mean.tolist()), tuple(std.tolist()))


def _placed(moments: Moments, sources: tuple[int, ...]) -> Moments:
    places = np.array(sources)
    return Moments(np.where(places < 0, 0.0, moments.values[:, places.clip(0)]))


def counts(images: ImageSet) -> list[dict]:
    """Return for each choice of channels that images of the set have its name, its channels and the images by split.

    The choices are in the order of `Channels.sensors`; none where every image has all channels.
    """
    names = images.channels.names
    by_split = {
        split: Counter(images.present(path) for path in rows.paths) if images.channels.sensors else Counter()
        for split, rows in images.splits.items()
    }
    return [
        {"name": sensor(number, present, names), "channels": [names[place] for place in present]}
        | {split: found[present] for split, found in by_split.items()}
        for number, present in enumerate(images.channels.sensors, 1)
    ]


def notes(images: ImageSet) -> tuple[str, ...]:
    """Return lines for the user on which images have which channels; none where every image has all."""
    found = counts(images)
    lines = [
        f"{row['name']}: {', '.join(f'{row[split]:,} {split}' for split in images.splits)} images"
        + f" of {len(row['channels'])} channels" * (row["name"].startswith(SENSOR))
        for row in found[:MOST_LINES]
    ]
    if len(found) > MOST_LINES:
        lines.append(f"{len(found) - MOST_LINES:,} more choices of channels, each in fewer images")
    head = f"images have {len(found):,} different choices of the {len(images.channels)} channels:"
    return (head, *lines) if len(found) > 1 else (f"every image lacks channels: {lines[0]}",) if found else ()


def told_apart(images: ImageSet) -> tuple[str, ...]:
    """Return a line for the user on classes that channels alone tell, of a set that is trained on; else none.

    Of such a class no training image has the same choice of channels as one of another class.
    """
    if not images.channels.sensors or "train" not in images.splits:
        return ()
    rows = images.splits["train"]
    pairs = {(images.present(path), label) for path, label in zip(rows.paths, rows.labels, strict=True)}
    counts = Counter(present for present, _ in pairs)
    shared = {label for present, label in pairs if counts[present] > 1}
    alone = {label: present for present, label in sorted(pairs, key=lambda pair: pair[1]) if label not in shared}
    if not alone:
        return ()
    label, present = next(iter(alone.items()))
    names, everything = images.class_names, images.channels.sensors
    which = f"class {names[label]!r}" if len(alone) == 1 else f"{len(alone):,} classes, such as {names[label]!r},"
    choice = sensor(everything.index(present) + 1, present, images.channels.names)
    has = f"no other class has training images of the same channels ({choice})"
    return (f"{which} can be told by channels alone, as {has}: a network may learn that in place of what images show",)
