"""How much to remove, whether that can be reached, and when it is; ours, for arXiv 2312.16904."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """What a network costs."""

    params: int
    macs: int


@dataclass(frozen=True)
class Saving:
    """What a unit costs, and its stage."""

    stage: str
    params: int
    macs: int


@dataclass(frozen=True)
class Targets:
    """Targets; None: no such target.

    Attributes:
        remove: number of units.
        params: share removed of the original network's parameters.
        macs: the same of its multiply-adds.
        latency: the same of its latency.
        all_of_them: whether all targets must be met, or any one.
    """

    remove: int | None
    params: float | None
    macs: float | None
    latency: float | None
    all_of_them: bool

    def reached(self, removed: int, original: Size, now: Size, latency_ratio: Callable[[], float]) -> bool:
        """Whether all targets, or one of them, are met; latency is measured only where it is a target."""
        met = []
        if self.remove is not None:
            met.append(removed >= self.remove)
        if self.params is not None:
            met.append(original.params - now.params >= self.params * original.params)
        if self.macs is not None:
            met.append(original.macs - now.macs >= self.macs * original.macs)
        if self.latency is not None:
            met.append(latency_ratio() <= 1 - self.latency)
        return all(met) if self.all_of_them else any(met)

    def at_most(self, removed: int, wanted: int) -> int:
        """Number of units for the next step: `wanted`, or fewer where a number of units is the only target."""
        if self.remove is None or (self.params, self.macs, self.latency) != (None, None, None):
            return wanted
        return min(wanted, self.remove - removed)

    def shortfall(
        self, original: Size, most: Size, count: int, latency_ratio: Callable[[], float]
    ) -> "Shortfall | None":
        """The first target that cannot be met; None if all can.

        Args:
            original: network.
            most: total cost of all removable units.
            count: of them.
            latency_ratio: of the network without them; called only if latency is a target.
        """
        goals = (
            Shortfall("remove", self.remove, count, "units"),
            Shortfall("target-params", self.params, most.params / original.params, "of the parameters"),
            Shortfall("target-macs", self.macs, most.macs / original.macs, "of the multiply-adds"),
            Shortfall("target-latency", self.latency, 1 - latency_ratio() if self.latency else 0.0, "of the latency"),
        )
        return next((row for row in goals if row.goal is not None and row.goal > row.attainable), None)


@dataclass(frozen=True)
class Shortfall:
    """A target, and how far it can be met.

    Attributes:
        name: of the target.
        goal: the requested value; None: no target.
        attainable: the most that can be removed.
        of: what these are shares or numbers of.
    """

    name: str
    goal: float | None
    attainable: float
    of: str


def largest_removal(units: Sequence[Saving], room: Mapping[str, int]) -> tuple[Size, int]:
    """The largest removal: in each stage as many units as there is room for, the largest first.

    Returns:
        Parameters and multiply-adds (each at its own largest), and the number of units.
    """
    params = macs = count = 0
    for stage, free in room.items():
        in_stage = [unit for unit in units if unit.stage == stage]
        params += sum(sorted((unit.params for unit in in_stage), reverse=True)[:free])
        macs += sum(sorted((unit.macs for unit in in_stage), reverse=True)[:free])
        count += min(free, len(in_stage))
    return Size(params, macs), count


def spread_over_stages(ranked: Sequence[int], stages: Sequence[str], room: Mapping[str, int], count: int) -> list[int]:
    """The first `count` of a ranking: one of each stage before a second of any, within each stage's room.

    Args:
        ranked: candidates, the least important first.
        stages: of each candidate.
        room: units that can be removed from each stage.
        count: how many to pick.
    """
    picked: list[int] = []
    for allowance in range(1, count + 1):
        for candidate in ranked:
            taken = sum(stages[other] == stages[candidate] for other in picked)
            if len(picked) < count and candidate not in picked and taken < min(allowance, room[stages[candidate]]):
                picked.append(candidate)
    return picked
