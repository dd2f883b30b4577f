"""Successive halving: the best of several by longer and longer trials (Jamieson & Talwalkar, arXiv 1502.07943).

All are tried alike, and the better half goes on with a trial that is twice as long, until one is left.
"""

from collections.abc import Callable, Sequence


def length(number: int) -> int:
    """Length of all trials of one until the end of a round, over that of the first: 1, 3, 7, .. for 0, 1, 2, .."""
    return (2 << number) - 1 if number >= 0 else 0


def tried(count: int) -> list[int]:
    """How many of `count` are tried in each round."""
    return [] if count < 2 else [count, *tried(survivors(count))]


def survivors(count: int) -> int:
    """How many of `count` go on."""
    return -(-count // 2)


def halve(names: Sequence[str], score: Callable[[str, int], float]) -> tuple[str, list[dict[str, float]]]:
    """The best of several.

    Args:
        names: of equal scores the earlier one is better.
        score: the higher, the better; given a name and the number of the round, from 0.

    Returns:
        Its name, and the scores of each round.
    """
    left = list(names)
    rounds: list[dict[str, float]] = []
    while len(left) > 1:
        found = {name: score(name, len(rounds)) for name in left}
        rounds.append(found)
        left = sorted(left, key=lambda name: -found[name])[: survivors(len(left))]
    return left[0], rounds
