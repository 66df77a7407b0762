"""What became of every file that is there: used, rejected or ignored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

UNLISTED = "in no split"
OWN, LABELS, OTHER_SPLITS = "lists and names", "labels", "of splits not used"
EXPECTED = frozenset([OWN, LABELS, OTHER_SPLITS])  # kinds of files that are part of a set


@dataclass(frozen=True)
class Account:
    """Counts of files (of members, in tars): used + rejected + ignored = present + missing.

    rejected: files that cannot be used, those `missing` though listed among them; ignored: by kind, files that are no
    images or belong to no split.
    """

    present: int
    used: int
    rejected: int = 0
    missing: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, kinds: Mapping[str, str], listed: Iterable[str]) -> Account:
        """Return the account of files that are there, each with its kind, of which some belong to the set."""
        listed = set(listed)
        others = (kind for path, kind in kinds.items() if path not in listed)
        ignored = dict(Counter(kind or UNLISTED for kind in others).most_common())
        return cls(len(kinds), len(listed), 0, len(listed - kinds.keys()), ignored)

    def without(self, rejected: int) -> Account:
        """Return the account with some of the files used now rejected."""
        return replace(self, used=self.used - rejected, rejected=self.rejected + rejected)

    def with_ignored(self, ignored: Mapping[str, int], among_used: bool = False) -> Account:
        """Return the account with further files that are ignored, by kind; `among_used`: they were counted as used."""
        count = sum(ignored.values())
        counts = Counter(self.ignored) + Counter(ignored)
        present, used = (self.present, self.used - count) if among_used else (self.present + count, self.used)
        return replace(self, present=present, used=used, ignored=dict(counts.most_common()))

    @property
    def is_notable(self) -> bool:
        """Whether files are rejected, or ignored though they are not the set's own descriptions."""
        return bool(self.rejected or self.ignored.keys() - EXPECTED)

    def __str__(self) -> str:
        parts = [f"{self.used:,} used"]
        if self.rejected:
            parts.append(f"{self.rejected:,} rejected" + f" ({self.missing:,} missing)" * bool(self.missing))
        if self.ignored:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.ignored.items())
            parts.append(f"{sum(self.ignored.values()):,} ignored ({kinds})")
        return f"{self.present:,} files: {', '.join(parts)}"

    def as_dict(self) -> dict:
        """Return the counts as values for JSON."""
        return asdict(self)
