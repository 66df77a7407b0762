"""The names of the channels of files for a trained network, and what its training has to keep for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from polychrome.engine.channels.names import listed
from polychrome.engine.data.conventions import BESIDE, TOGETHER, Conventions, Taken, Trained, by_itself
from polychrome.engine.data.files.pixels import why_unusable
from polychrome.engine.data.sets.inspection import Stack
from polychrome.engine.data.sets.sensors import channel_files, descriptions
from polychrome.engine.errors import UserError


def of_model(
    path: Path,
    stack: Stack,
    given: tuple[str, ...] | None,
    trained: Trained,
    asked: tuple[str, ...] = (),
    at_home: bool = False,
) -> tuple[str, ...]:
    """Return the names of a file's channels, which are among those of a model.

    They are `given` where something describes the file, else those that the training took the same names for, else the
    file's own, or `asked` for a file that names none and has as many. A file that names none of the model's channels,
    and has as many, is taken to have the model's, in its order, unless a name that it has is elsewhere in this order or
    in that of the training's files. In the folder of the training, `at_home`, the names of a file that nothing
    describes hold, as they did in training.

    Raises:
        UserError: the file has other channels, or nobody can tell which.
    """
    wanted = trained.channels.names
    own = _undescribed(path, stack, trained, asked, at_home) if given is None else given
    if (found := by_itself(own, stack.channels, wanted)) is not None:
        return found
    has = f"channels {listed(own)}" if own else f"{stack.channels} channels"
    kind = "some of" if own else f"{len(wanted)}:"
    hint = "" if own else f"; name them in {descriptions.FILE}, or by --channels"
    raise UserError(f"{path} has {has}, wanted {kind} {listed(wanted)}{hint}")


def _undescribed(path: Path, stack: Stack, trained: Trained, asked: tuple[str, ...], at_home: bool) -> tuple[str, ...]:
    own, count, conventions = stack.names, stack.channels, trained.conventions
    if count == 1 and (how := split(conventions)):
        line = f".,{descriptions.BESIDE.join(conventions.taken[0].names)}"
        told = f"{descriptions.FILE} in its folder says so, with a line such as `{line}`"
        instead = "give the file of each, as the training had them, or arrays of all channels"
        raise UserError(f"{path} has 1 channel, {how}: {instead if conventions.apart else told}")
    if at_home and own:
        return own
    told, wanted = own or stack.told, trained.channels.names
    if not own and count == len(asked):
        _check_order(path, stack, asked)
        return asked
    together = [each for each in conventions.taken if each.form == TOGETHER]
    alike = (each.names for each in together if each.own == told)
    known = tuple(dict.fromkeys(names for names in alike if len(names) == count))
    if not own and count < len(trained.channels):
        return own
    if len(known) > 1:
        has = f"channels {in_words(stack)}" if told else f"{count} channels without names"
        both = f"{listed(known[0])} in some images of the training and {listed(known[1])} in others"
        hint = f"name them in {descriptions.FILE}{', or by --channels' * (not own)}"
        raise UserError(f"{path} has {has}, which were {both}: {hint}")
    if not known and count == len(wanted) and set(own).isdisjoint(wanted):
        for order in (wanted, *(each.own for each in together)):
            _check_order(path, stack, order)
    return known[0] if known else own


def _check_order(path: Path, stack: Stack, order: tuple[str, ...]) -> None:
    if moved(stack.names or stack.told, order):
        hint = f"name all of them in {descriptions.FILE} in its folder"
        raise UserError(f"{path} has channels {in_words(stack)}, wanted the order {listed(order)}: {hint}")


def moved(own: tuple[str, ...], order: tuple[str, ...]) -> bool:
    """Return whether a name that a file has, in any case, is in an order of channels in other places alone."""
    own, order = (tuple(name.casefold() for name in names) for names in (own, order))
    alike = {name for name, other in zip(own, order, strict=False) if name == other}
    return any(name and name in order and name not in alike for name in own)


def in_words(stack: Stack) -> str:
    """Return the names that a file gives its channels, in a line."""
    return listed([name or "(no name)" for name in stack.names or stack.told or ("",) * stack.channels])


def split(conventions: Conventions) -> str | None:
    """Return, as part of a sentence, how a training had channels in parts or files of one channel; None: not so."""
    each = next((each for each in conventions.taken if each.form != TOGETHER), None)
    if each is None:
        return None
    how = f"{listed(each.names)} side by side" if each.form == BESIDE else f"a file for each ({channel_files.OPTION})"
    return f"and the channels of the training were {how}"


def conventions(scale: str, files: Iterable[Taken], wanted: tuple[str, ...]) -> Conventions:
    """Return what a training has to keep of what its files were taken for, see `Conventions`."""
    groups: dict[tuple[tuple[str, ...], int], dict[Taken, None]] = {}
    for each in files:
        count = len(each.names) if each.form == TOGETHER else 1
        groups.setdefault((each.own, count), {})[each] = None
    kept = (
        each
        for (own, count), group in groups.items()
        for each in group
        if len(each.names) > count
        or why_unusable(own)
        or any(other.names != by_itself(own, count, wanted) for other in group)
    )
    return Conventions(scale, tuple(kept))
