"""What the files of a training were taken for, so that files that its networks are shown later are taken alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from polychrome.engine.channels.names import Channels

TOGETHER, BESIDE, APART = "together", "side by side", "a file for each"


class Taken(NamedTuple):
    """The names that files give their channels, usable or not, the names that hold, and how they lie.

    form: `TOGETHER`, `BESIDE` in an image of one channel, or `APART`, each in a file of one channel.
    """

    own: tuple[str, ...]
    names: tuple[str, ...]
    form: str = TOGETHER


@dataclass(frozen=True)
class Conventions:
    """What the files of a set were taken for, as far as a file alone does not tell it.

    scale: the kind of values, see `engine.data.sets.inspection.Stack.scale`, "uint8" of photos; None: not known.
    taken: the files whose channels are others than `by_itself` says, and those that such files are confused with.
    """

    scale: str | None = None
    taken: tuple[Taken, ...] = ()

    @property
    def apart(self) -> bool:
        """Whether images have a file for each of their channels."""
        return any(each.form == APART for each in self.taken)

    def as_dict(self) -> dict:
        """Return the "reading" entry of the data of `results.json`."""
        rows = [{"own": list(each.own), "names": list(each.names), "form": each.form} for each in self.taken]
        return {"scale": self.scale, "taken": rows}

    @classmethod
    def of(cls, data: Mapping) -> Conventions:
        """Return those of the data of `results.json`; nothing is known of a run of an earlier version."""
        found = data.get("reading") or {}
        rows = (Taken(tuple(row["own"]), tuple(row["names"]), row["form"]) for row in found.get("taken", ()))
        return cls(found.get("scale"), tuple(rows))


class Trained(NamedTuple):
    """What is known of the data that a network was trained on.

    dtype: the type of its values, "uint8" or "float32". root: its folder, if that is known. channel_files: the regular
    expression that found the channel in the path of a file, where images have a file for each of their channels.
    """

    channels: Channels
    dtype: str = "uint8"
    conventions: Conventions = Conventions()
    root: Path | None = None
    channel_files: str | None = None


def by_itself(own: tuple[str, ...], count: int, wanted: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the channels, among those of a model, of a file of `count` channels with the names `own`, maybe none.

    A file that names none of the model's, and has as many, has the model's in its order. None where its channels are
    not known.
    """
    if not set(own) & set(wanted) and count == len(wanted):
        return wanted
    return own if own and set(own) <= set(wanted) else None
