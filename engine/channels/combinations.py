"""Combinations of channels by name: for tests by default, or as a user asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from types import MappingProxyType

import numpy as np

from polychrome.engine.channels import names as naming
from polychrome.engine.channels.names import ALL, MOST_WITH_ALL_COMBINATIONS, RGB, SENSORS, SHUFFLED, are_letters, join
from polychrome.engine.errors import UserError

DRAWS_OF_EACH_SIZE = 3
MOST_DRAWS = 50  # for a size, where few combinations of it are there
MOST_SENSORS = 8  # that are tested by default
# The order in which the reports list the combinations of three channels.
_REPORTED = ("RGB", "RG", "GB", "RB", "R", "G", "B")
# The order in which report C trains on these combinations.
_IN_TURN = ("R", "RG", "G", "GB", "B", "RB", "RGB")

# Positions of the channels by the name of their combination; empty where each sample gets a random choice and order,
# None where each sample gets all channels that it has.
Combinations = Mapping[str, tuple[int, ...] | None]


def every(names: Sequence[str] = RGB.names, seed: int = 0, sensors: Sequence[tuple[int, ...]] = ()) -> Combinations:
    """Return the combinations that are tested by default, the full set first.

    Up to five channels these are all combinations; with more channels, the full set, each channel alone, and three
    different random choices of each size between, drawn by `seed` and named as "12 of 48 #1".

    Where images have different channels, `sensors` (see `Channels`), the full set is what each image has; the channels
    of each sensor follow (of the eight most frequent), and further combinations are such as a sensor has.
    """
    count = len(names)
    if sensors:
        return _of_sensors(names, seed, sensors)
    everything = tuple(range(count))
    if tuple(names) == RGB.names:
        return {name: tuple(map(names.index, name)) for name in _REPORTED}
    if count <= MOST_WITH_ALL_COMBINATIONS:
        chosen = (some for size in range(count, 0, -1) for some in combinations(everything, size))
        return {join([names[channel] for channel in some], names): some for some in chosen}
    found = {ALL: everything}
    generator = np.random.default_rng([seed, count])
    for size in range(count - 1, 1, -1):
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < DRAWS_OF_EACH_SIZE:
            chosen = tuple(sorted(generator.choice(count, size, replace=False).tolist()))
            if chosen not in drawn:
                drawn.add(chosen)
                found[f"{size} of {count} #{len(drawn)}"] = chosen
    return found | {names[channel]: (channel,) for channel in everything}


def of_sensors(names: Sequence[str], sensors: Sequence[tuple[int, ...]]) -> Combinations:
    """Return the combination of each sensor's channels, see `Channels`, by name."""
    return {naming.sensor(number, chosen, names): chosen for number, chosen in enumerate(sensors, 1)}


def _of_sensors(names: Sequence[str], seed: int, sensors: Sequence[tuple[int, ...]]) -> Combinations:
    count, found = len(names), {ALL: None} | of_sensors(names, sensors[:MOST_SENSORS])
    if count <= MOST_WITH_ALL_COMBINATIONS:
        every_one = (some for size in range(count, 0, -1) for some in combinations(range(count), size))
        there = (some for some in every_one if any(set(some) <= set(sensor) for sensor in sensors))
        return found | {join([names[channel] for channel in some], names): some for some in there}
    generator, known = np.random.default_rng([seed, count]), set(found.values())
    for size in range(max(map(len, sensors)) - 1, 1, -1):
        larger, drawn = [sensor for sensor in sensors if len(sensor) > size], []
        for _ in range(MOST_DRAWS):
            sensor = larger[generator.integers(len(larger))]
            chosen = tuple(sorted(generator.choice(sensor, size, replace=False).tolist()))
            if chosen not in known and len(drawn) < DRAWS_OF_EACH_SIZE:
                known.add(chosen)
                drawn.append(chosen)
        found |= {f"{size} of {count} #{number}": chosen for number, chosen in enumerate(drawn, 1)}
    return found | {names[channel]: (channel,) for channel in sorted(set().union(*sensors))}


def in_turn(names: Sequence[str] = RGB.names) -> tuple[tuple[int, ...], ...]:
    """Return the combinations that "cycle" trains on, in order, the full set last.

    Raises:
        UserError: the channels have too many combinations.
    """
    if tuple(names) == RGB.names:
        return tuple(tuple(map(names.index, name)) for name in _IN_TURN)
    if len(names) > MOST_WITH_ALL_COMBINATIONS:
        raise UserError(f"channel sampling cycle takes up to {MOST_WITH_ALL_COMBINATIONS} channels, got {len(names)}")
    return tuple(every(names).values())[::-1]


def parse(
    wanted: Sequence[str],
    names: Sequence[str] = RGB.names,
    seed: int = 0,
    sensors: Sequence[tuple[int, ...]] = (),
) -> Combinations:
    """Return the combinations the user asked for, by name.

    "all" stands for `every`, "shuffled" for a random choice and order of the channels for each sample, and where images
    have different channels "sensors" for each sensor's channels, "sensor 2" for those of one.

    Raises:
        UserError: a combination names an unknown channel or sensor, or a channel twice, or is itself named twice, by
            one name or by two, as RG and R+G are. One that is named beside "all" or "sensors" is in the result once.
    """
    found: dict[str, tuple[int, ...] | None] = {}
    by_number = {f"{naming.SENSOR} {number}": chosen for number, chosen in enumerate(sensors, 1)}
    for combination in wanted:
        if wanted.count(combination) > 1:
            raise UserError(f"channels {combination!r} are named {wanted.count(combination)} times")
        if combination == ALL:
            found |= _new(every(names, seed, sensors), found)
        elif combination == SENSORS:
            found |= _new(of_sensors(names, sensors) or {naming.full(names): tuple(range(len(names)))}, found)
        elif combination in by_number:
            found[combination] = by_number[combination]
        elif naming.is_reserved(combination) and combination != SHUFFLED:
            raise UserError(f"channels {combination!r}: the images have {max(len(sensors), 1)} choices of channels")
        else:
            found[combination] = () if combination == SHUFFLED else indices(combination, names)
    _check_once(found)
    return MappingProxyType(found)


def _new(more: Combinations, found: Combinations) -> Combinations:
    """Return those of `more` combinations that are not found by another name; in another order they are others."""
    there = {chosen for chosen in found.values() if chosen}
    return {name: chosen for name, chosen in more.items() if chosen not in there}


def _check_once(found: Combinations) -> None:
    first: dict[tuple[int, ...], str] = {}
    for name, chosen in found.items():
        if chosen and first.setdefault(chosen, name) != name:
            raise UserError(f"channels {name!r} are {first[chosen]!r} again")


def indices(combination: str, names: Sequence[str] = RGB.names) -> tuple[int, ...]:
    """Return the positions of a combination's channels, in the order of its name.

    Raises:
        UserError: as `parse`.
    """
    chosen = _split(combination, names)
    unknown = [channel for channel in chosen if channel not in names]
    if not chosen:
        raise UserError(f"channels must name at least one of {', '.join(names)}")
    if unknown:
        raise UserError(
            f"channels {combination!r}: no channel {join(unknown, names)!r}; the data has {', '.join(names)}"
            + _hint([channel for channel in chosen if channel in names], unknown, names)
        )
    if len(set(chosen)) != len(chosen):
        raise UserError(f"channels {combination!r}: a channel is named twice")
    return tuple(map(list(names).index, chosen))


def _hint(known: list[str], unknown: list[str], names: Sequence[str]) -> str:
    """Return what may have been meant, as the end of a sentence: the closest names, without those that have none."""
    by_lower = {name.lower(): name for name in names}
    close = [get_close_matches(channel.lower(), by_lower, n=1) for channel in unknown]
    meant = list(dict.fromkeys(known + [by_lower[each[0]] for each in close if each]))
    return f"; did you mean {join(meant, names)!r}?" if meant else ""


def _split(combination: str, names: Sequence[str]) -> list[str]:
    if combination in names:
        return [combination]
    letters = "+" not in combination and are_letters(names)
    return list(combination) if letters else [name.strip() for name in combination.split("+") if name.strip()]
