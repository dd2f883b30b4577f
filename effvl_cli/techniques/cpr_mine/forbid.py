"""Bank rows that may not become positives of a query: itself, its source, empty slots. B queries, N bank rows.

The exclusions are those of Wu et al., arXiv 2201.07989; how they are kept is ours.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forbid:
    """Forbidden pairs, by equal numbers; no (B, N) mask is ever made.

    Attributes:
        query_ids: (B,) int64.
        bank_ids: (N,) int64; an equal id is forbidden, and so is the empty slot -1 to every query.
        query_groups: (B,) int64, e.g. the source video; -1: unknown, equal to none.
        bank_groups: (N,) int64.
        pairs: (P, 2) int64, positions of a query and of a bank row.
    """

    query_ids: Tensor | None = None
    bank_ids: Tensor | None = None
    query_groups: Tensor | None = None
    bank_groups: Tensor | None = None
    pairs: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "groups"):
            query, bank = getattr(self, f"query_{name}"), getattr(self, f"bank_{name}")
            if query is not None and bank is None:
                raise ValueError(f"query_{name} without bank_{name}")

    def of_queries(self, rows: range) -> "Forbid":
        """The same for some of the queries, which then count from 0."""
        ids, groups = (
            None if found is None else found[rows.start : rows.stop] for found in (self.query_ids, self.query_groups)
        )
        pairs = self.pairs
        if pairs is not None:
            pairs = pairs[(pairs[:, 0] >= rows.start) & (pairs[:, 0] < rows.stop)]
            pairs = pairs - torch.tensor([rows.start, 0], device=pairs.device)
        return replace(self, query_ids=ids, query_groups=groups, pairs=pairs)


class _Equal:
    """Pairs of a query and a bank row with equal numbers other than -1, found by bisection."""

    def __init__(self, query: Tensor, bank: Tensor) -> None:
        ordered, self.order = bank.sort(stable=True)
        self.first = torch.searchsorted(ordered, query)
        self.count = torch.searchsorted(ordered, query, right=True) - self.first
        self.count *= query != -1

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        count, first = self.count[start:stop], self.first[start:stop]
        query = torch.arange(stop - start, device=count.device).repeat_interleave(count)
        begin = count.cumsum(0) - count
        place = torch.arange(len(query), device=count.device) - begin[query] + first[query]
        return query, self.order[place]


class Forbidden:
    """What `Forbid` says, ready to be asked for blocks of queries.

    Args:
        forbid: None forbids nothing.
        device: of the scores.
    """

    def __init__(self, forbid: Forbid | None, device: torch.device) -> None:
        forbid = forbid or Forbid()
        self._equal: list[_Equal] = []
        self.empty = torch.empty(0, dtype=torch.int64, device=device)
        self._pairs = torch.empty(0, 2, dtype=torch.int64, device=device)
        if forbid.bank_ids is not None:
            bank = forbid.bank_ids.to(device)
            self.empty = (bank == -1).nonzero()[:, 0]
            if forbid.query_ids is not None:
                self._equal.append(_Equal(forbid.query_ids.to(device), bank))
        if forbid.bank_groups is not None and forbid.query_groups is not None:
            self._equal.append(_Equal(forbid.query_groups.to(device), forbid.bank_groups.to(device)))
        if forbid.pairs is not None:
            pairs = forbid.pairs.to(device)
            self._pairs = pairs[pairs[:, 0].argsort(stable=True)]

    def is_empty(self, rows: Tensor) -> Tensor:
        """Whether bank rows (P,) are empty slots."""
        return torch.isin(rows, self.empty)

    @property
    def total(self) -> int:
        """Pairs, empty slots aside; one that is forbidden in two ways counts twice."""
        return sum(int(found.count.sum()) for found in self._equal) + len(self._pairs)

    @property
    def most(self) -> int:
        """A bound of the pairs of one query, empty slots aside."""
        counts = [int(found.count.max()) for found in self._equal if len(found.count)]
        if len(self._pairs):
            counts.append(int(self._pairs[:, 0].bincount().max()))
        return sum(counts)

    def pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Queries, counted from `start`, and bank rows of the forbidden pairs of a block, some maybe twice."""
        queries, rows = [], []
        for found in self._equal:
            query, row = found.of(start, stop)
            queries.append(query)
            rows.append(row)
        low, high = torch.searchsorted(
            self._pairs[:, 0].contiguous(), torch.tensor([start, stop], device=self._pairs.device)
        ).tolist()
        queries.append(self._pairs[low:high, 0] - start)
        rows.append(self._pairs[low:high, 1])
        return torch.cat(queries), torch.cat(rows)

    def mark(self, target: Tensor, value: float | bool, pairs: tuple[Tensor, Tensor], first_row: int = 0) -> None:
        """Write `value` where target (b, t) has a forbidden pair; its columns are the bank rows from `first_row`."""
        query, row = pairs
        inside = (row >= first_row) & (row < first_row + target.shape[1])
        target[query[inside], row[inside] - first_row] = value
        empty = self.empty[(self.empty >= first_row) & (self.empty < first_row + target.shape[1])]
        if len(empty):
            target[:, empty - first_row] = value
