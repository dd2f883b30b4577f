"""What becomes of a task after an attempt and after the sweep of ratios: pure rules over recorded accuracies.

arXiv 1910.06562 and its released code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unreachable = Literal["share", "fail", "accept"]


@dataclass(frozen=True)
class Chosen:
    """The stage that a task keeps.

    Attributes:
        ratio: released share of what was available; 0 is the network before the sweep.
        reached: whether its accuracy reaches the goal.
    """

    ratio: float
    reached: bool


def next_move(accuracy: float, goal: float | None, width: float, width_max: float) -> Literal["sweep", "grow", "limit"]:
    """After an attempt to learn: go on to the sweep, grow, or apply the policy for a goal that cannot be reached.

    Args:
        accuracy: validation accuracy of the attempt.
        goal: accuracy to reach, less the slack; None: any is enough.
        width: width multiple of the attempt.
        width_max: largest width multiple.
    """
    if goal is None or accuracy >= goal:
        return "sweep"
    return "grow" if width < width_max else "limit"


def allowed_share(num_remaining: int) -> float:
    """Share of the available weights that a task may keep when `num_remaining` tasks follow: round(1 / (r + 1), 1).

    Python rounds half to even: 1 / 4 becomes 0.2.
    """
    return round(1 / (num_remaining + 1), 1)


def mandatory_ratio(num_remaining: int) -> float:
    """Share that a task must release when its goal is out of reach and `num_remaining` tasks follow."""
    return round(1 - allowed_share(num_remaining), 1)


def deepest(recorded: Mapping[float, float], goal: float, min_ratio: float = 0.0) -> float | None:
    """The largest recorded ratio of at least `min_ratio` whose accuracy reaches the goal; None where there is none."""
    return max((q for q, accuracy in recorded.items() if accuracy >= goal and q >= min_ratio), default=None)


def choose(recorded: Mapping[float, float], goal: float | None, *, min_ratio: float = 0.0) -> Chosen:
    """The stage to keep of a task whose goal was reached before the sweep, or that has none.

    The largest ratio that reaches the goal; where none does, the smallest recorded one that is allowed: 0, unless
    `min_ratio` forces more. Without a goal, the deepest recorded stage.

    Args:
        recorded: validation accuracy of each ratio; 0 is the network before the sweep.
        goal: less the slack.
        min_ratio: smallest ratio to choose.

    Raises:
        ValueError: nothing was recorded at `min_ratio` or above.
    """
    allowed = sorted(q for q in recorded if q >= min_ratio)
    if not allowed:
        raise ValueError(f"no stage released {min_ratio:g} or more")
    if goal is None:
        return Chosen(allowed[-1], reached=True)
    found = deepest(recorded, goal, min_ratio)
    return Chosen(allowed[0], reached=False) if found is None else Chosen(found, reached=True)


def choose_at_limit(recorded: Mapping[float, float], goal: float, *, mandatory: float) -> Chosen:
    """The stage to keep at the largest width when the goal was missed before the sweep.

    A stage may reach the goal although the network before it did not: then the deepest one that reaches the goal and
    releases the mandatory share. Only where there is none, the stage at which the released code ends its sweep whatever
    the accuracy: the first that releases the mandatory share, or the deepest recorded so far.

    Args:
        recorded: validation accuracy of each ratio.
        goal: less the slack.
        mandatory: see `mandatory_ratio`.
    """
    found = deepest(recorded, goal, mandatory)
    if found is not None:
        return Chosen(found, reached=True)
    return Chosen(min((q for q in recorded if q >= mandatory), default=max(recorded)), reached=False)


def sweep_goes_on(
    recorded: Mapping[float, float], goal: float | None, *, patience: int | None, mandatory: float = 0.0
) -> bool:
    """Whether a further stage is worth its epochs.

    Args:
        recorded: accuracies so far, in the order of the sweep; 0 is the network before it.
        goal: less the slack; None: the sweep stops at the mandatory ratio.
        patience: failing stages in a row after which it stops; None: never.
        mandatory: ratio below which it goes on in any case.
    """
    stages = {q: accuracy for q, accuracy in recorded.items() if q > 0}
    if max(stages, default=0.0) < mandatory:
        return True
    if goal is None:
        return False
    failing = 0
    for accuracy in stages.values():
        failing = 0 if accuracy >= goal else failing + 1
    return patience is None or failing < patience


def adopt_retrained(selected: float, retrained: float) -> bool:
    """Whether the retrained network replaces the selected stage: only where it is strictly better."""
    return retrained > selected
