"""When a training ends before its last step: rules on the figures of its evaluations.

A rule sees all of them from the first one on, so that a resumed run decides as an uninterrupted one would.
"""

from collections.abc import Callable, Mapping, Sequence

Rule = Callable[[Sequence[Mapping[str, float]]], bool]
"""Maps the figures of all evaluations so far to whether to stop."""


def patience(figure: str, count: int, *, least: float = 0.0) -> Rule:
    """Stop after `count` evaluations in a row that are not more than `least` above the best before them.

    Args:
        figure: higher is better.
        count: at least 1.
        least: smallest rise that counts.
    """

    def over(history: Sequence[Mapping[str, float]]) -> bool:
        best, waited = -float("inf"), 0
        for figures in history:
            if figures[figure] > best + least:
                best, waited = figures[figure], 0
            else:
                waited += 1
        return waited >= count

    return over


def plateau(figure: str, window: int, *, least: float = 0.0) -> Rule:
    """Stop when the mean of the last `window` evaluations is not more than `least` above that of as many before them.

    Args:
        figure: higher is better.
        window: at least 1.
        least: smallest rise that counts.
    """

    def over(history: Sequence[Mapping[str, float]]) -> bool:
        values = [figures[figure] for figures in history]
        if len(values) < 2 * window:
            return False
        return sum(values[-window:]) - sum(values[-2 * window : -window]) <= least * window

    return over
