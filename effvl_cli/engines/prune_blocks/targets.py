"""How much is to be removed, whether that can be reached, and when it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effvl_cli.config.prune_blocks import EMBEDDED, PruneBlocksConfig
from effvl_cli.core.errors import UsageError

EMBEDDED_REMOVED = 2


@dataclass(frozen=True)
class Size:
    """What a network costs."""

    params: int
    macs: int


@dataclass(frozen=True)
class Saving:
    """What a unit costs, and where it is."""

    stage: str
    params: int
    macs: int


@dataclass(frozen=True)
class Targets:
    """Goals, as shares removed of the original network; None: no such goal."""

    remove: int | None
    params: float | None
    macs: float | None
    latency: float | None
    all_of_them: bool

    @classmethod
    def of(cls, config: PruneBlocksConfig, data: str) -> "Targets":
        """From the options.

        Raises:
            UsageError: none given, on other than the embedded data.
        """
        given = (config.remove, config.target_params, config.target_macs, config.target_latency)
        if all(goal is None for goal in given):
            if data != EMBEDDED:
                raise UsageError(
                    "nothing says how much to remove",
                    "Give --remove, --target-params, --target-macs or --target-latency",
                )
            return cls(EMBEDDED_REMOVED, None, None, None, all_of_them=True)
        return cls(*given, all_of_them=config.stop == "all")

    def reached(self, removed: int, original: Size, now: Size, latency_ratio: Callable[[], float]) -> bool:
        """Whether the goals, or one of them, are met; the latency is asked for only where it is a goal."""
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
        """Units of the next step: `wanted`, or fewer where a number of units is the only goal."""
        if self.remove is None or (self.params, self.macs, self.latency) != (None, None, None):
            return wanted
        return min(wanted, self.remove - removed)

    def check(self, original: Size, most: Size, count: int, latency_ratio: Callable[[], float]) -> None:
        """Refuse goals that cannot be met.

        Args:
            original: network.
            most: what all removable units cost together.
            count: of them.
            latency_ratio: of the network without them.

        Raises:
            UsageError: names the option and the attainable maximum.
        """
        goals = (
            ("remove", self.remove, count, "units"),
            ("target-params", self.params, most.params / original.params, "of the parameters"),
            ("target-macs", self.macs, most.macs / original.macs, "of the multiply-adds"),
            ("target-latency", self.latency, 1 - latency_ratio() if self.latency else 0.0, "of the latency"),
        )
        for name, goal, attainable, of in goals:
            if goal is not None and goal > attainable:
                bound = f"{attainable:.4g}"
                raise UsageError(
                    f"--{name} is {goal}, and at most {bound} {of} can be removed", f"Give {bound} or less"
                )


def largest_removal(units: Sequence[Saving], room: dict[str, int]) -> tuple[Size, int]:
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


def spread_over_stages(ranked: Sequence[int], stages: Sequence[str], room: dict[str, int], count: int) -> list[int]:
    """The first `count` of a ranking, of each stage one before any second, and none beyond a stage's room.

    Args:
        ranked: candidates, the least important first.
        stages: of each candidate.
        room: units that each stage can lose.
        count: how many to pick.
    """
    picked: list[int] = []
    for allowance in range(1, count + 1):
        for candidate in ranked:
            taken = sum(stages[other] == stages[candidate] for other in picked)
            if len(picked) < count and candidate not in picked and taken < min(allowance, room[stages[candidate]]):
                picked.append(candidate)
    return picked
