"""The stages of a cascade: the view in which candidates are ranked, and how many stay. N bank items, k positives.

The cascade is that of Wu et al., arXiv 2201.07989; how its sizes are written and checked is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GUARD = 1e-9  # so that a size which is a whole number stays one


@dataclass(frozen=True)
class Stage:
    """The `n` best candidates by similarity in `view` stay."""

    view: str
    n: int


class CascadeError(ValueError):
    """Stages that make no cascade.

    Args:
        code: E_CASCADE (what was written) or E_STAGE_SIZE (what the sizes come to).
        message: what is wrong.
        hint: what to do.
    """

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(f"{code}: {message}. {hint}")
        self.code, self.message, self.hint = code, message, hint


def described(stages: Sequence[Stage]) -> str:
    """As `--cascade` writes them, sizes expanded: "flow:1024,rgb:512,flow:5"."""
    return ",".join(f"{stage.view}:{stage.n}" for stage in stages)


def official(
    num_items: int,
    views: Sequence[str],
    *,
    num_stages: int,
    ratio: float,
    top_k: int,
    last: str | None = None,
    first: int | None = None,
) -> tuple[Stage, ...]:
    """The schedule of the released code: sizes floor(N r^s) of the whole bank, views in turn, the last one the first.

    With two views (main, aux) odd stages rank in the main view, even ones in the other, and the last in the main view,
    whatever its number (github.com/necla-ml/CPR; not in the paper's abstract).

    Args:
        num_items: N.
        views: in turn; the first is the main one.
        num_stages: S >= 1.
        ratio: r in (0, 1].
        top_k: k, the size of the last stage.
        last: view of the last stage (default: the first).
        first: size of the first stage (default: floor(N r)); the others are floor(first r^(s - 1)).

    Raises:
        CascadeError: sizes that `validate` refuses, with the largest S that would do, or a first one above N.
    """
    start = num_items if first is None else first / ratio
    sizes = [int(start * ratio**number + GUARD) for number in range(1, num_stages)] + [top_k]
    turn = [views[number % len(views)] for number in range(num_stages - 1)] + [last or views[0]]
    stages = tuple(Stage(view, size) for view, size in zip(turn, sizes, strict=True))
    most = most_stages(start, ratio, top_k)
    if most is not None and num_stages > most:
        validate(stages, views, num_items, hint=f"The largest valid number of stages is {most}")
    validate(stages, views, num_items)
    _check_first(stages, num_items)
    return stages


def most_stages(num_items: float, ratio: float, top_k: int) -> int | None:
    """The largest S whose stages before the last keep at least k items: 1 + floor(log(k/N) / log r); None: any."""
    if ratio == 1:
        return None
    found = 1
    while int(num_items * ratio**found + GUARD) >= top_k:
        found += 1
    return found


def parse(text: str, num_items: int, views: Sequence[str], top_k: int) -> tuple[Stage, ...]:
    """Stages from "flow:0.5,rgb:0.5,flow:0.25,rgb:64,flow".

    An item is a view and its size after the last colon: with a point a share of N, else a number of items; the last
    item may go without, and then keeps `top_k`. Names of views may hold colons ("flow:mv").

    Raises:
        CascadeError: an item that says neither, an unknown view, sizes that `validate` refuses, or a first one above N.
    """
    items = [item.strip() for item in text.split(",")]
    stages = [
        _stage(item, num_items, views, top_k if place == len(items) - 1 else None) for place, item in enumerate(items)
    ]
    validate(stages, views, num_items)
    _check_first(stages, num_items)
    return tuple(stages)


def _stage(item: str, num_items: int, views: Sequence[str], unsaid: int | None) -> Stage:
    """One item; `unsaid` is the size of one that has none."""
    view, colon, size = item.rpartition(":")
    if item in views or not colon:  # a name may hold colons
        if unsaid is None:
            raise CascadeError("E_CASCADE", f"stage {item!r} has no size", "Only the last stage may go without")
        return Stage(item, unsaid)
    try:
        if "." not in size:
            return Stage(view, int(size))
        share = float(size)
    except ValueError:
        raise CascadeError(
            "E_CASCADE",
            f"stage {item!r} has the size {size!r}",
            "Write VIEW:SHARE with a point, e.g. rgb:0.5, or VIEW:NUMBER, e.g. rgb:64",
        ) from None
    if not 0 < share <= 1:
        raise CascadeError("E_CASCADE", f"stage {item!r} keeps a share of {size}", "It is above 0 and at most 1.0")
    return Stage(view, int(num_items * share + GUARD))


def _check_first(stages: Sequence[Stage], num_items: int) -> None:
    """The first stage keeps no more than there is; as many are allowed, which keep everything."""
    if stages[0].n > num_items:
        raise CascadeError(
            "E_STAGE_SIZE",
            f"stage 1 keeps {stages[0].n} of {num_items} items ({described(stages)})",
            f"Give {num_items} at most, or a share: {stages[0].view}:0.5",
        )


def validate(stages: Sequence[Stage], views: Sequence[str], num_items: int, *, hint: str = "") -> None:
    """Check a cascade before anything is computed.

    Args:
        stages: with sizes expanded.
        views: that there are.
        num_items: N; for queries that are themselves in the bank, one less than the bank holds.
        hint: what to do about sizes below k, where that is known.

    Raises:
        CascadeError: no stage, an unknown view, sizes that grow, a stage below k = the last size, or k > N.
    """
    shown = described(stages)
    for stage in stages:
        if stage.view not in views:
            raise CascadeError("E_CASCADE", f"no view {stage.view!r} ({shown})", f"There are {', '.join(views)}")
    if not stages or stages[-1].n < 1:
        raise CascadeError("E_STAGE_SIZE", f"the last stage keeps nothing ({shown})", "It keeps 1 or more")
    wanted = stages[-1].n
    if wanted > num_items:
        raise CascadeError(
            "E_STAGE_SIZE",
            f"{wanted} positives of {num_items} candidates ({shown})",
            f"Ask for at most {max(num_items, 0)}, or give more items",
        )
    for number, stage in enumerate(stages[:-1], 1):
        if stage.n < wanted:
            raise CascadeError(
                "E_STAGE_SIZE",
                f"stage {number} keeps {stage.n}, fewer than the {wanted} of the last ({shown})",
                hint or f"Every stage keeps at least {wanted}",
            )
        if number > 1 and stage.n > stages[number - 2].n:
            raise CascadeError(
                "E_STAGE_SIZE", f"stage {number} keeps more than stage {number - 1} ({shown})", "Sizes may not grow"
            )
