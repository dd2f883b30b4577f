"""The removable units of a network, what each saves, and the sets that may be removed together.

Ours, around the units of arXiv 2312.16904.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .discover import Rejected
from .scoring_cost import PartMacs, cost_model
from .targets import Saving
from .unit import Unit

SHOWN = 4  # paths shown for each reason


@dataclass(frozen=True)
class Candidate:
    """A removable unit.

    Attributes:
        unit: in the current network.
        original: its path in the original network.
        params: parameters that its removal saves.
        macs: the same, of one image.
    """

    unit: Unit
    original: str
    params: int
    macs: int

    @property
    def saving(self) -> Saving:
        """Its size and place."""
        return Saving(self.unit.stage, self.params, self.macs)


@dataclass(frozen=True)
class Choice:
    """Candidates that are scored and removed together; usually one.

    Attributes:
        members: indices of the candidates.
        path: of their units, joined by +.
        original: of the same, in the original network.
        stage: of the same.
        params: that their removal saves.
        macs: the same, of one image.
    """

    members: tuple[int, ...]
    path: str
    original: str
    stage: str
    params: int
    macs: int

    @classmethod
    def of(cls, candidates: Sequence[Candidate], members: Sequence[int]) -> "Choice":
        """Of some candidates."""
        chosen = [candidates[index] for index in members]
        return cls(
            tuple(members),
            "+".join(candidate.unit.path for candidate in chosen),
            "+".join(candidate.original for candidate in chosen),
            "+".join(candidate.unit.stage for candidate in chosen),
            sum(candidate.params for candidate in chosen),
            sum(candidate.macs for candidate in chosen),
        )


@dataclass(frozen=True)
class Found:
    """What can be removed.

    Attributes:
        candidates: in the order of their calls.
        room: how many units can be removed from each stage.
        rejected: modules that are not units.
        parts: multiply-adds of the network's parts; None where there is no candidate.
    """

    candidates: tuple[Candidate, ...]
    room: Mapping[str, int]
    rejected: tuple[Rejected, ...]
    parts: PartMacs | None

    def as_many_as_can_go(self) -> list[Candidate]:
        """The first candidates of each stage, as many as can be removed."""
        room, gone = dict(self.room), []
        for candidate in self.candidates:
            if room[candidate.unit.stage]:
                room[candidate.unit.stage] -= 1
                gone.append(candidate)
        return gone

    def cost(self, sets: Sequence[Sequence[int]] | None = None) -> dict[str, Any] | None:
        """Of scoring all candidates directly, or sets of them, for the report."""
        if self.parts is None:
            return None
        found = cost_model(*self.parts, sets)
        return {"naive_macs": found.naive, "cached_macs": found.cached, "ratio": found.ratio}


def pairs(found: Found) -> list[Choice]:
    """All pairs of candidates that may be removed together."""
    return grow(found, [Choice.of(found.candidates, (index,)) for index in range(len(found.candidates))])


def grow(found: Found, choices: Sequence[Choice]) -> list[Choice]:
    """All sets with one candidate more than a given one that leave each stage what it must keep; the given sets
    where there are none."""
    candidates = found.candidates
    sets = {tuple(sorted({*choice.members, index})) for choice in choices for index in range(len(candidates))}
    larger = [members for members in sorted(sets) if len(members) > len(choices[0].members)]
    fitting = [members for members in larger if _fits(found, members)]
    return [Choice.of(candidates, members) for members in fitting] or list(choices)


def _fits(found: Found, members: Sequence[int]) -> bool:
    stages = [found.candidates[index].unit.stage for index in members]
    return all(stages.count(stage) <= found.room[stage] for stage in stages)


def reasons(rejected: tuple[Rejected, ...]) -> str:
    """Counts and some paths of each reason, on one line."""
    paths: dict[str, list[str]] = defaultdict(list)
    for row in rejected:
        paths[row.reason].append(row.path)
    return "; ".join(
        f"{len(found)} {reason} ({', '.join(found[:SHOWN])}{', ...' if len(found) > SHOWN else ''})"
        for reason, found in paths.items()
    )


def describe(found: Found) -> dict[str, Any]:
    """For the report."""
    return {
        "valid_units": [
            {
                "index": index,
                "path": c.original,
                "stage": c.unit.stage,
                "shortcut": c.unit.shortcut,
                "params": c.params,
                "macs": c.macs,
            }
            for index, c in enumerate(found.candidates)
        ],
        "rejected": [vars(row) for row in found.rejected],
        "cost_model": found.cost(),
    }
