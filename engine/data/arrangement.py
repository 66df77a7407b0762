"""How an image holds the channels of its set, where images have different channels or a file for each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np


class Form(NamedTuple):
    """What is known of a file of measured values before it is read.

    channels: how many it has; None: not known. side_by_side: whether they are parts of equal width of one image of a
    single channel, from left to right.
    """

    channels: int | None = None
    side_by_side: bool = False


@dataclass(frozen=True)
class Arrangement:
    """How an image holds the channels of its set.

    sources: for each channel of the set its place among those of the image; negative where the image lacks it.
    form: of its file. files: a file for each of its channels, where it has several; else empty.
    """

    sources: tuple[int, ...]
    form: Form = field(default_factory=Form)
    files: tuple[str, ...] = ()

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The channels of the set that the image has, ascending."""
        return tuple(place for place, source in enumerate(self.sources) if source >= 0)

    def placed(self, image: np.ndarray) -> np.ndarray:
        """Return an image [height, width, its channels] as [height, width, channels of the set], 0 where absent."""
        sources = np.array(self.sources)
        found = image[..., sources.clip(0)]
        found[..., sources < 0] = 0
        return found
