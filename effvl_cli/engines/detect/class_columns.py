"""Columns of a table with a count for each class: of many classes those of the largest, and one of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST = 8
"""Classes that have columns of their own; a table of more is too wide to be read."""


@dataclass(frozen=True)
class ClassColumns:
    """Which classes have columns.

    Attributes:
        shown: their names, in the order of the data.
        others: how many have none.
    """

    shown: tuple[str, ...]
    others: int

    @classmethod
    def of(cls, totals: Mapping[str, int]) -> "ClassColumns":
        """All classes, or of many the largest; of equal ones the first."""
        if len(totals) <= MOST:
            return cls(tuple(totals), 0)
        largest = sorted(totals, key=lambda name: -totals[name])[:MOST]
        return cls(tuple(name for name in totals if name in largest), len(totals) - MOST)

    @property
    def titles(self) -> tuple[str, ...]:
        """Of the columns."""
        return (*self.shown, f"{self.others} others") if self.others else self.shown

    def cells(self, counts: Mapping[str, int]) -> Sequence[int | None]:
        """A row: None for a class that is not counted."""
        own = [counts.get(name) for name in self.shown]
        rest = sum(count for name, count in counts.items() if name not in self.shown)
        return [*own, rest] if self.others else own
