"""A cascade over all queries, on every process its share, and how good what it finds is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.run import Run
from effvl_cli.techniques.cpr_mine.cascade import Candidates, Mined, NonFiniteError, OnStage, mine, zero_rows
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.mining_plan import MemoryLimitError, Method, Plan
from effvl_cli.techniques.cpr_mine.quality import (
    Quality,
    StageQuality,
    StageTally,
    eligible,
    hubness,
    judge,
    judge_stages,
    new_share,
    recall_at,
    reciprocity,
)
from effvl_cli.techniques.cpr_mine.stages import Stage

ALIKE = 0.9999  # cosine in every view above which two items are duplicates
LOOKED_AT = 16  # nearest items of each view that duplicates are sought among
RANKS = (1, 5, 10, 20, 50)

Rows = Mapping[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """How to compute; see `cascade.mine`."""

    mem_bytes: int = 2**30
    method: Method = "auto"
    block_size: int | None = None
    tf32: bool = False
    candidates: tuple[int, Candidates] | None = None


@dataclass(frozen=True)
class Found:
    """Positives of all queries, on every process.

    Attributes:
        indices: (B, k) item of each positive, the best first; -1 for none.
        scores: (B, k).
        alone: of each view, the items (B, n) and cosines that are best in it alone; n is at least k.
        right: (B, S + 1) items of the query's class that each stage keeps, and that there were at first.
        known: (B, S + 1) items with a class.
        zero_rows: of norm zero, by view.
        seconds: of this process.
        plan: how it was computed.
    """

    indices: Tensor
    scores: Tensor
    alone: dict[str, tuple[Tensor, Tensor]]
    right: Tensor
    known: Tensor
    zero_rows: dict[str, int]
    seconds: dict[str, float]
    plan: Plan


@dataclass(frozen=True)
class Verdict:
    """How good the positives of a cascade are, beside those of each view alone.

    Attributes:
        cascade: figures.
        alone: figures of the k best of each view alone.
        stages: what each stage keeps.
        recall_at: share of queries with an item of their class among the first K positives.
    """

    cascade: Quality
    alone: dict[str, Quality]
    stages: list[StageQuality]
    recall_at: Mapping[int, float]


def mine_all(
    run: Run,
    queries: Rows,
    bank: Rows,
    stages: Sequence[Stage],
    *,
    forbid: Forbid,
    labels: tuple[Tensor, Tensor] | None = None,
    settings: Settings | None = None,
) -> Found:
    """Mine the positives of all queries; each process works on its share of them.

    Args:
        run: shows the progress; its device computes.
        queries: (B, D) of each view.
        bank: (N, D) of each view.
        stages: with sizes expanded.
        forbid: of all queries.
        labels: of queries (B,) and items (N,), -1 unknown; only what the stages keep is counted with them.
        settings: how to compute.

    Raises:
        DataError: NaN or infinity in an embedding.
        UsageError: a query does not fit into the memory, or no query has enough candidates.
    """
    settings = settings or Settings()
    zero = {view: _zero_rows(view, queries[view], bank[view]) for view in bank}
    total = len(next(iter(queries.values())))
    share = distributed.shard(total)
    mine_of = {view: rows[share.start : share.stop] for view, rows in queries.items()}
    asked, known = labels or (torch.full((total,), -1), torch.full((len(next(iter(bank.values()))),), -1))
    tally = StageTally(asked[share.start : share.stop].to(run.device), known.to(run.device), len(stages))
    with run.progress("mining", len(share)) as bar:

        def tell(rows: range, number: int, found: Tensor) -> None:
            if labels is not None:
                tally.count(rows, number, found)
            if number == len(stages) - 1:
                bar.update(rows.stop)
                if distributed.world().size == 1 and run.stop_signal():
                    run.check_stop()

        found = _mined(run, mine_of, bank, stages, forbid.of_queries(share), share, settings, tell)
    if not distributed.all_reduce_max(int(found.valid.all(1).any())):
        raise UsageError(
            f"every query has fewer than {stages[-1].n} candidates that are not forbidden",
            "Lower --top-k, or leave --groups out",
        )

    def join(rows: Tensor) -> Tensor:
        return distributed.gather_rows(rows.cpu(), total)

    return Found(
        join(found.indices),
        join(found.scores),
        {view: (join(found.alone[view][0]), join(found.alone[view][1])) for view in bank},
        join(tally.right),
        join(tally.known),
        zero,
        found.seconds,
        found.plan,
    )


def _zero_rows(view: str, queries: Tensor, bank: Tensor) -> int:
    try:
        found = zero_rows(view, bank)
        return found if queries is bank else found + zero_rows(f"the queries' {view}", queries)
    except NonFiniteError as error:
        raise DataError(str(error), "Leave these rows out, or embed them again") from error


def _mined(
    run: Run,
    queries: Rows,
    bank: Rows,
    stages: Sequence[Stage],
    forbid: Forbid,
    share: range,
    settings: Settings,
    tell: OnStage,
) -> Mined:
    """This process's share; queries count from 0 in it.

    Raises:
        UsageError: a query does not fit into the memory.
    """
    candidates = settings.candidates
    if candidates is not None and share.start:
        number, given = candidates
        candidates = number, lambda rows, unit: given(range(rows.start + share.start, rows.stop + share.start), unit)
    try:
        return mine(
            queries,
            bank,
            stages,
            forbid=forbid,
            block_q=settings.block_size,
            mem_bytes=settings.mem_bytes,
            method=settings.method,
            tf32=settings.tf32,
            candidates=candidates,
            on_stage=tell,
            check=False,
            alone=max(LOOKED_AT, stages[-1].n),
            device=run.device,
        )
    except MemoryLimitError as error:
        needed = f"{math.ceil(error.needed / 2**20)}M"
        raise UsageError(str(error), f"Give --mem {needed}") from error


def verdict(found: Found, labels: tuple[Tensor, Tensor], forbid: Forbid, *, drawn: bool = False) -> Verdict:
    """Judge positives by labels.

    Args:
        found: positives.
        labels: of queries (B,) and items (N,), -1 unknown.
        forbid: what could not be found.
        drawn: each query had candidates of its own: those of its class among them count, not those in the bank.
    """
    asked, known = labels
    candidates = found.right[:, -1].masked_fill(asked < 0, 0) if drawn else eligible(asked, known, forbid)
    k = found.indices.shape[1]
    return Verdict(
        judge(found.indices, asked, known, candidates),
        {view: judge(rows[:, :k], asked, known, candidates) for view, (rows, _) in found.alone.items()},
        judge_stages(found.right[:, :-1], found.known[:, :-1], candidates),
        recall_at(found.indices, asked, known, RANKS),
    )


def shape_of(found: Found, num_items: int, *, same: bool) -> dict[str, object]:
    """What the positives look like without labels: shares that are new to each view, hubs, reciprocity."""
    k = found.indices.shape[1]
    return {
        "new": {view: new_share(found.indices, rows[:, :k]) for view, (rows, _) in found.alone.items()},
        "hubness": hubness(found.indices, num_items),
        "reciprocity": reciprocity(found.indices) if same else None,
        "short_queries": int((found.indices < 0).any(1).sum()),
    }


def duplicates(alone: Mapping[str, tuple[Tensor, Tensor]], num_items: int) -> Tensor:
    """(P, 2) queries and items whose cosine is above `ALIKE` in every view, among the best of each view.

    Args:
        alone: of each view, items and cosines (B, n).
        num_items: N.
    """
    common: Tensor | None = None
    for rows, scores in alone.values():
        query, place = (scores > ALIKE).nonzero(as_tuple=True)
        pairs = query * num_items + rows[query, place]
        common = pairs if common is None else pairs[torch.isin(pairs, common)]
    assert common is not None
    return torch.stack([common // num_items, common % num_items], 1)
