"""How a cascade is computed within a memory limit. N bank items, V views of D numbers, S stages of sizes n_1..n_S.

Ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from effvl_cli.techniques.cpr_mine.selection import group_size
from effvl_cli.techniques.cpr_mine.stages import Stage

Method = Literal["auto", "gather", "mask"]

GATHER_COST = 80  # products of a whole row that take as long as one gathered row of the same length
SELECTED = 40  # bytes at most for each candidate that a stage keeps: values, places, rows, marks
SHARE = 2  # of the limit, what is surely left for the queries: one part of two
GROUPED = 32  # bytes for each member of a group: its position, made twice, and its score
TILED = 16  # bytes for each bank item of a tile that is merged with those before it
PAIR = 40  # bytes for each forbidden pair
FEW = 32  # queries below which a product is slow
MANY = 256  # queries above which it gets no faster


class MemoryLimitError(ValueError):
    """A single query does not fit into the memory limit."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(f"E_MEM: one query needs {needed} bytes of working memory, and {limit} are allowed")
        self.needed, self.limit = needed, limit


@dataclass(frozen=True)
class Plan:
    """How to go through the queries.

    Attributes:
        method: gather: the first view's row, then the rows of the candidates; mask: whole rows of every view.
        block: queries at a time.
        tile: bank items at a time.
        held: whether unit rows of the bank are kept; else they are made tile by tile.
        tie_bytes: for rows with ties.
        macs: multiply-adds of one query.
    """

    method: Literal["gather", "mask"]
    block: int
    tile: int
    held: bool
    tie_bytes: int
    macs: int


@dataclass(frozen=True)
class Problem:
    """What is to be mined.

    Attributes:
        stages: the cascade.
        dims: D of each view.
        num_items: N.
        num_queries: B.
        forbidden: pairs of one query, at most.
        candidates: to choose the first stage from, where they are given; 0: all items.
        alone: best of each view alone that are wanted too, of every view in `dims`.
    """

    stages: Sequence[Stage]
    dims: Mapping[str, int]
    num_items: int
    num_queries: int
    forbidden: int = 0
    candidates: int = 0
    alone: int = 0

    @property
    def used(self) -> tuple[str, ...]:
        """Views that something is ranked in, in the order of their first stage."""
        ranked = dict.fromkeys(stage.view for stage in self.stages)
        return tuple(ranked | dict.fromkeys(self.dims)) if self.alone else tuple(ranked)

    @property
    def _width(self) -> int:
        return self.candidates or min(self.stages[0].n, self.num_items)

    def _gathered(self) -> list[tuple[str, int]]:
        """View and number of the rows that each stage gathers."""
        first = [(self.stages[0].view, self.candidates)] if self.candidates else []
        sizes = [min(stage.n, self._width) for stage in self.stages]
        others = [(view, self.candidates) for view in self.used[1:]] if self.alone and self.candidates else []
        return first + others + [(stage.view, size) for stage, size in zip(self.stages[1:], sizes[:-1], strict=True)]

    def macs(self, method: str) -> int:
        """Multiply-adds of one query."""
        if method == "mask":
            return sum(self.num_items * self.dims[view] for view in self.used)
        ranked = self.used if self.alone else self.used[:1]
        first = 0 if self.candidates else sum(self.num_items * self.dims[view] for view in ranked)
        return first + sum(size * self.dims[view] for view, size in self._gathered())

    def cost(self, method: str) -> int:
        """Time of one query, in multiply-adds of a large product."""
        later = sum(size * self.dims[view] for view, size in self._gathered())
        return self.macs(method) + ((GATHER_COST - 1) * later if method == "gather" else 0)

    def bytes_per_query(self, method: str, tile: int) -> int:
        """Working memory of one query, the bank aside."""
        fixed = (
            SELECTED * (max(self._width, self.alone) + 1)
            + PAIR * self.forbidden
            + 8 * sum(self.dims[view] for view in self.used)
        )
        fixed += self.num_items if self.candidates else self._grouped()  # a mark for each item
        if method == "mask":
            return fixed + 4 * self.num_items * len(self.used)
        rows = max((6 * size * self.dims[view] for view, size in self._gathered()), default=0)
        if self.candidates:
            return fixed + rows
        return fixed + (4 * tile + rows if tile >= self.num_items else max(TILED * tile, rows))  # a whole row is kept

    def _grouped(self) -> int:
        """Bytes of the members of the groups that the first selection looks at."""
        most = 0
        for wanted in (self.stages[0].n + 1, self.alone + 1):
            size = group_size(self.num_items, wanted)
            most = max(most, GROUPED * wanted * size + 4 * self.num_items // size if size > 1 else 0)
        return most


def plan(
    problem: Problem,
    *,
    mem_bytes: int = 2**30,
    method: Method = "auto",
    block_q: int | None = None,
    tile: int | None = None,
) -> Plan:
    """Choose method, block and tile so that the working buffers stay within the limit.

    Args:
        problem: what is to be mined.
        mem_bytes: limit of the similarity block, candidates, gathered rows and kept unit rows together.
        method: auto: the one that takes less time, if at least `FEW` queries fit at once.
        block_q: queries at a time (default: as many as fit, up to `MANY`).
        tile: bank items at a time (default: as many as fit).

    Raises:
        MemoryLimitError: one query does not fit.
    """
    size = 4 * problem.num_items * sum(problem.dims[view] for view in problem.used)
    held = size <= mem_bytes // 4
    tie_bytes = mem_bytes // 16
    left = mem_bytes - tie_bytes - (size if held else 0)
    deepest = max(problem.dims[view] for view in problem.used)
    if not held:
        most = max(1, left // 16 // (4 * deepest))
        tile = min(tile or most, most)
        left -= 2 * 4 * tile * deepest  # one is being made while the one before it is still there
    found: dict[str, tuple[int, int]] = {}
    needs = []
    for name in ("gather", "mask") if method == "auto" else (method,):
        width = _tile_of(problem, name, tile, left)
        needs.append(problem.bytes_per_query(name, width))
        if needs[-1] <= left:
            found[name] = min(problem.num_queries, block_q or min(left // needs[-1], MANY)), width
    if not found:
        raise MemoryLimitError(SHARE * min(needs), mem_bytes)
    enough = [name for name, (block, _) in found.items() if block >= min(FEW, problem.num_queries)]
    chosen = min(enough or found, key=problem.cost)
    block, width = found[chosen]
    kind: Literal["gather", "mask"] = "mask" if chosen == "mask" else "gather"
    return Plan(kind, max(1, block), width, held, tie_bytes, problem.macs(chosen))


def _tile_of(problem: Problem, method: str, tile: int | None, left: int) -> int:
    """Bank items at a time: all, unless that leaves room for few queries only."""
    whole = min(tile or problem.num_items, problem.num_items)
    if method == "mask" or problem.candidates or (tile is not None and tile < FEW):
        return whole
    if problem.bytes_per_query(method, whole) * min(FEW, problem.num_queries) <= left:
        return whole
    room = left // min(FEW, problem.num_queries) - problem.bytes_per_query(method, 0)
    least = max(problem.stages[0].n, 1)
    return min(whole, max(room // TILED, least))
