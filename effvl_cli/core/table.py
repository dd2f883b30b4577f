"""Results as a table; `cli/console.py` prints it."""

from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under a title; None is a cell without a value."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def percent(value: float | None, digits: int = 1) -> str | None:
    """A fraction in percent, e.g. 0.983 -> "98.3"."""
    return None if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None, digits: int = 1) -> str | None:
    """A difference of fractions in signed points, e.g. -0.013 -> "-1.3"; one that rounds to none has no sign."""
    if value is None:
        return None
    rounded = round(100 * value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def shortened(text: str, most: int = 40) -> str:
    """A text, cut where it is longer, e.g. a name that a user gave to a folder."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def counted(count: int, noun: str) -> str:
    """A number and its noun, e.g. "1 task", "3 tasks"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def times(value: float | None) -> str | None:
    """A ratio, e.g. 1.471 -> "1.47x"."""
    return None if value is None else f"{value:.2f}x"
