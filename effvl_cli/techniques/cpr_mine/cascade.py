"""Mining of positives by a cascade (Wu et al., arXiv 2201.07989, figure of the framework; github.com/necla-ml/CPR).

B queries, N bank items, V views of D numbers each (D may differ), k positives. Row j of every bank is the same item.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from effvl_cli.techniques.cpr_mine.forbid import Forbid, Forbidden
from effvl_cli.techniques.cpr_mine.mining_plan import Method, Plan, Problem, plan
from effvl_cli.techniques.cpr_mine.selection import in_order, top_n
from effvl_cli.techniques.cpr_mine.stages import Stage, validate

SMALL, LARGE = 1e-15, 1e15  # norms outside of which squares under- or overflow in float32
CHECKED = 2**22  # numbers looked at at once

Rows = Mapping[str, Tensor]
Candidates = Callable[[range, Mapping[str, Tensor]], Tensor]
"""Queries and their unit rows (b, D) by view to bank rows (b, M), distinct in each row, -1 for none."""
OnStage = Callable[[range, int, Tensor], None]
"""Queries, number of the stage from 0 (-1: the given candidates), and bank rows (b, n) in no order, -1 for none."""


class NonFiniteError(ValueError):
    """Embeddings with NaN or infinity."""

    def __init__(self, name: str, count: int, first: int) -> None:
        rows = "row" if count == 1 else "rows"
        super().__init__(f"E_NONFINITE: {count} {rows} of {name} with NaN or infinity, the first is row {first}")
        self.name, self.count, self.first = name, count, first


@dataclass
class Mined:
    """Positives of each query, the most similar in the last stage's view first.

    Attributes:
        indices: (B, k) int64 bank rows; -1 where there are fewer candidates than k.
        scores: (B, k) float32 similarity in the last stage's view; -inf there.
        valid: (B, k) bool.
        stage_stats: bank rows (B, n_s) that each stage kept, in no order, -1 for none; None unless asked for.
        alone: of each view, the bank rows and scores (B, n) that are best in it alone, in order; see `mine`.
        zero_rows: rows of norm zero, whose similarities are 0, by view: of queries and bank together.
        seconds: in products (gemm) and in selection (select).
        plan: how it was computed.
    """

    indices: Tensor
    scores: Tensor
    valid: Tensor
    stage_stats: tuple[Tensor, ...] | None
    alone: dict[str, tuple[Tensor, Tensor]]
    zero_rows: dict[str, int]
    seconds: dict[str, float]
    plan: Plan


@torch.no_grad()
def mine(
    queries: Rows,
    bank: Rows,
    stages: Sequence[Stage],
    *,
    forbid: Forbid | None = None,
    block_q: int | None = None,
    tile: int | None = None,
    mem_bytes: int = 2**30,
    method: Method = "auto",
    return_stages: bool = False,
    normalize: bool = True,
    check: bool = True,
    tf32: bool = False,
    candidates: tuple[int, Candidates] | None = None,
    on_stage: OnStage | None = None,
    alone: int = 0,
    device: torch.device | None = None,
) -> Mined:
    """Retrieve the positives of each query: every stage keeps the most similar of the candidates before it.

    C_0 is what is not forbidden; C_s the n_s members of C_(s-1) with the largest cosine in the view of stage s, equal
    ones by bank row. Exact whatever the method, block and tile, up to the rounding of products in float32. No state
    is kept and nothing is random.

    Args:
        queries: (B, D) of each view, of a floating type.
        bank: (N, D) of each view; may lie on the CPU, also mapped from a file.
        stages: as `stages.validate` accepts them; the last size is k.
        forbid: pairs that no stage may return.
        block_q: queries at a time (default: as many as fit).
        tile: bank items at a time (default: as many as fit).
        mem_bytes: limit of the working buffers.
        method: see `mining_plan.Plan`.
        return_stages: give what each stage kept.
        normalize: scale rows to norm 1; False: they have it.
        check: look for NaN, infinity and rows of norm zero first; with False a caller answers for them.
        tf32: allow the reduced float32 products of a GPU.
        candidates: their number M and a function that gives them: the first stage chooses from these alone.
        on_stage: called with what each stage kept.
        alone: also give so many best of each view alone, of every view that both sides have.
        device: what computes (default: where the queries are).

    Raises:
        ValueError: shapes that do not fit.
        CascadeError: stages that make no cascade.
        NonFiniteError: NaN or infinity in an embedding.
        MemoryLimitError: one query does not fit into `mem_bytes`.
    """
    problem = _problem(queries, bank, stages, candidates, alone)
    device = device or queries[problem.used[0]].device
    forbidden = Forbidden(forbid, device)
    problem = replace(problem, forbidden=forbidden.most)
    chosen = plan(problem, mem_bytes=mem_bytes, method=method, block_q=block_q, tile=tile)
    zero = {view: _zero_of_both(queries[view], bank[view], view) for view in problem.used} if check else {}
    kept: list[list[Tensor]] = [[] for _ in stages] if return_stages else []

    def tell(rows: range, number: int, found: Tensor) -> None:
        if kept and number >= 0:
            kept[number].append(found)
        if on_stage:
            on_stage(rows, number, found)

    with _exact_products(device, tf32):
        banks = _Bank(bank, problem, chosen, device, normalize)
        miner = _Miner(queries, banks, problem, forbidden, candidates, tell if kept or on_stage else None)
        parts = [miner.block(rows) for rows in _blocks(problem, chosen)]
    names = (_CASCADE, *(problem.used if alone else ()))
    joined = {name: [torch.cat(found) for found in zip(*(part[name] for part in parts), strict=True)] for name in names}
    ranked = {name: (rows.masked_fill_(scores == -torch.inf, -1), scores) for name, (scores, rows) in joined.items()}
    indices, scores = ranked.pop(_CASCADE)
    stats = tuple(map(torch.cat, kept)) if kept else None
    return Mined(indices, scores, indices >= 0, stats, ranked, zero, banks.clock.seconds, chosen)


def _blocks(problem: Problem, chosen: Plan) -> list[range]:
    count = problem.num_queries
    return [range(start, min(start + chosen.block, count)) for start in range(0, max(count, 1), chosen.block)]


def _problem(
    queries: Rows, bank: Rows, stages: Sequence[Stage], candidates: tuple[int, Candidates] | None, alone: int
) -> Problem:
    """Check shapes.

    Raises:
        ValueError: they do not fit.
        CascadeError: stages that make no cascade.
    """
    for side, rows in (("queries", queries), ("bank", bank)):
        for view, found in rows.items():
            if found.dim() != 2 or not found.is_floating_point():
                raise ValueError(f"{side} of {view}: (rows, numbers) of a floating type, not {tuple(found.shape)}")
        if len({len(found) for found in rows.values()}) > 1:
            raise ValueError(f"{side}: views of {[len(found) for found in rows.values()]} rows")
    num_items = len(next(iter(bank.values())))
    both = [view for view in bank if view in queries]
    validate(stages, both, num_items)
    dims = {view: bank[view].shape[1] for view in (both if alone else [stage.view for stage in stages])}
    for view, dim in dims.items():
        if queries[view].shape[1] != dim:
            raise ValueError(f"{view}: queries of {queries[view].shape[1]} numbers, a bank of {dim}")
    most = candidates[0] if candidates else 0
    if candidates and most < stages[-1].n:
        raise ValueError(f"{most} candidates for {stages[-1].n} positives")
    return Problem(stages, dims, num_items, len(next(iter(queries.values()))), candidates=most, alone=alone)


def _zero_of_both(queries: Tensor, bank: Tensor, view: str) -> int:
    """Rows of norm zero.

    Raises:
        NonFiniteError: NaN or infinity.
    """
    same = queries.data_ptr() == bank.data_ptr() and queries.shape == bank.shape
    zero = zero_rows(view, bank)
    return zero if same else zero + zero_rows(f"the queries' {view}", queries)


def zero_rows(name: str, rows: Tensor) -> int:
    """Rows of norm zero among (n, D), of which a few are looked at at a time.

    Raises:
        NonFiniteError: NaN or infinity.
    """
    zero, bad, first = 0, 0, -1
    step = max(1, CHECKED // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        norm = torch.linalg.vector_norm(part, dim=1)
        odd = (~(norm.isfinite() & (norm > 0))).nonzero()[:, 0]  # also rows whose squares over- or underflow
        part = part[odd]
        wrong = odd[(~part.isfinite()).any(1)]
        if len(wrong):
            first = start + int(wrong[0]) if bad == 0 else first
            bad += len(wrong)
        zero += int((part == 0).all(1).sum())
    if bad:
        raise NonFiniteError(name, bad, first)
    return zero


@contextlib.contextmanager
def _exact_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """Products in float32, also under autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def unit_rows(rows: Tensor, *, own: bool = False) -> Tensor:
    """(n, D) float32 copies of norm 1, or the rows themselves where they may be changed; zeros stay zeros."""
    found = rows.to(torch.float32, copy=not own)
    norm = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    odd = ((norm < SMALL) | (norm > LARGE))[:, 0]
    if odd.any():
        exact = rows[odd].double()
        exact /= torch.linalg.vector_norm(exact, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        found[odd], norm[odd] = exact.float(), 1.0
    return found.div_(norm)


@dataclass
class _Clock:
    """Seconds of products and of selection; a GPU works on meanwhile, so there they are those of starting them."""

    seconds: dict[str, float] = field(default_factory=lambda: {"gemm": 0.0, "select": 0.0})

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


class _Bank:
    """Unit rows of the bank, held or made when they are needed."""

    def __init__(self, bank: Rows, problem: Problem, chosen: Plan, device: torch.device, normalize: bool) -> None:
        self.plan, self.device, self.normalize = chosen, device, normalize
        self.num_items, self.clock = problem.num_items, _Clock()
        self.raw = {view: bank[view] for view in problem.used}
        self.unit: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        for view, rows in self.raw.items():
            if not normalize and rows.dtype == torch.float32 and rows.device == device:
                self.unit[view] = rows
            elif chosen.held:
                with self.clock.of("gemm"):
                    self.unit[view] = self._held(rows)

    def _held(self, rows: Tensor) -> Tensor:
        held = torch.empty(*rows.shape, dtype=torch.float32, device=self.device)
        step = max(1, CHECKED // max(1, rows.shape[1]) // 4)
        for start in range(0, len(rows), step):
            held[start : start + step] = self.prepared(rows[start : start + step])
        return held

    def prepared(self, rows: Tensor, *, own: bool = False) -> Tensor:
        """Rows on the device, float32, of norm 1; see `unit_rows`."""
        rows = rows.to(self.device)
        return unit_rows(rows, own=own) if self.normalize else rows.float()

    def tile(self, view: str, start: int) -> Tensor:
        """(t, D) unit rows from `start`."""
        stop = min(start + self.plan.tile, self.num_items)
        if view in self.unit:
            return self.unit[view][start:stop]
        return self.prepared(self.raw[view][start:stop])

    def whole_rows(self, view: str, query: Tensor) -> Tensor:
        """(b, N) similarities; they stand until the next block of queries (gather: until the next call)."""
        with self.clock.of("gemm"):
            found = self._buffer(view if self.plan.method == "mask" else "", len(query))
            for start in range(0, self.num_items, self.plan.tile):
                part = self.tile(view, start)
                torch.mm(query, part.T, out=found[:, start : start + len(part)])
            return found

    def _buffer(self, name: str, count: int) -> Tensor:
        """(count, N) of a kind of scores: memory that was written before is written faster than new memory."""
        if len(self._buffers.get(name, ())) < count:
            self._buffers[name] = torch.empty(count, self.num_items, device=self.device)
        return self._buffers[name][:count]

    def of_candidates(self, view: str, query: Tensor, rows: Tensor) -> Tensor:
        """(b, n) similarities to the bank rows (b, n)."""
        with self.clock.of("gemm"):
            flat = rows.flatten()
            if view in self.unit:
                near = self.unit[view].index_select(0, flat)
            else:
                near = self.prepared(self.raw[view].index_select(0, flat.to(self.raw[view].device)), own=True)
            near = near.view(*rows.shape, -1)
            return torch.bmm(near, query[:, :, None])[:, :, 0]


_CASCADE = ""  # no view is called so


class _Miner:
    """The cascade on blocks of queries."""

    def __init__(
        self,
        queries: Rows,
        bank: _Bank,
        problem: Problem,
        forbidden: Forbidden,
        candidates: tuple[int, Candidates] | None,
        tell: OnStage | None,
    ) -> None:
        self.queries, self.bank, self.problem = queries, bank, problem
        self.forbidden, self.candidates, self.tell = forbidden, candidates, tell
        self.plan, self.stages = bank.plan, problem.stages

    def block(self, rows: range) -> dict[str, tuple[Tensor, Tensor]]:
        """Scores and bank rows (b, k) in order, and those of each view alone; the score of what is none is -inf."""
        query = {view: self.bank.prepared(self.queries[view][rows.start : rows.stop]) for view in self.bank.raw}
        block = _Block(query, self.forbidden.pairs(rows.start, rows.stop))
        if self.candidates:
            block.given = self._given(rows, block)
            self._tell(rows, -1, torch.zeros_like(block.given, dtype=torch.float32), block.given)
        scores, found = self._best(block, self.stages[0].view, self.stages[0].n)
        ranked = {}
        if 0 < self.problem.alone <= self.stages[0].n:
            ranked[self.stages[0].view] = self._first_of(scores, found)
        self._tell(rows, 0, scores, found)
        for number, stage in enumerate(self.stages[1:], 1):
            similar = self._similar(stage.view, block, found)
            similar.masked_fill_(scores == -torch.inf, -torch.inf)  # forbidden stay forbidden
            scores, found = self._kept(similar, found, stage.n)
            self._tell(rows, number, scores, found)
        ranked[_CASCADE] = in_order(scores, found)
        for view in self.problem.used if self.problem.alone else ():
            if view not in ranked:
                ranked[view] = self._first_of(*self._best(block, view, self.problem.alone))
        return ranked

    def _first_of(self, scores: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """The best of each view alone, in order."""
        return in_order(*self._kept(scores, found, self.problem.alone))

    def _tell(self, rows: range, number: int, scores: Tensor, found: Tensor) -> None:
        if self.tell:
            self.tell(rows, number, found.masked_fill(scores == -torch.inf, -1))

    def _whole(self, view: str, block: "_Block") -> Tensor:
        """(b, N) similarities, -inf where forbidden; kept for later stages."""
        if view not in block.whole:
            scores = self.bank.whole_rows(view, block.query[view])
            self.forbidden.mark(scores, -torch.inf, block.pairs)
            block.whole[view] = scores
        return block.whole[view]

    def _similar(self, view: str, block: "_Block", found: Tensor) -> Tensor:
        """(b, n) similarities to the bank rows (b, n)."""
        if self.plan.method == "gather":
            return self.bank.of_candidates(view, block.query[view], found)
        return self._whole(view, block).gather(1, found)

    def _kept(self, scores: Tensor, found: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
        """The n best of (b, m): scores and bank rows."""
        with self.bank.clock.of("select"):
            places = top_n(scores, n, found, tie_bytes=self.plan.tie_bytes)
            return scores.gather(1, places), places if found is None else found.gather(1, places)

    def _given(self, rows: range, block: "_Block") -> Tensor:
        """(b, M) given candidates without the forbidden ones: -1."""
        assert self.candidates is not None
        found = self.candidates[1](rows, block.query)
        marked = torch.zeros(len(found), self.bank.num_items, dtype=torch.bool, device=found.device)
        self.forbidden.mark(marked, True, block.pairs)
        return found.masked_fill(marked.gather(1, found.clamp_min(0)), -1)

    def _best(self, block: "_Block", view: str, n: int) -> tuple[Tensor, Tensor]:
        """The n best of all that is not forbidden, or of the given candidates: scores and bank rows."""
        if block.given is not None:
            scores = self._similar(view, block, block.given.clamp_min(0)).masked_fill(block.given < 0, -torch.inf)
            return self._kept(scores, block.given.clamp_min(0), n)
        if self.plan.method == "mask":
            return self._kept(self._whole(view, block), None, n)
        if self.plan.tile >= self.bank.num_items:
            scores = self.bank.whole_rows(view, block.query[view])
            self.forbidden.mark(scores, -torch.inf, block.pairs)
            return self._kept(scores, None, n)
        return self._tiled(block, view, n)

    def _tiled(self, block: "_Block", view: str, n: int) -> tuple[Tensor, Tensor]:
        """The n best, tile by tile: the best so far and those of the next tile compete."""
        query = block.query[view]
        best = torch.empty(len(query), 0, device=self.bank.device)
        found = torch.empty(len(query), 0, dtype=torch.int64, device=self.bank.device)
        for start in range(0, self.bank.num_items, self.plan.tile):
            part = self.bank.tile(view, start)
            with self.bank.clock.of("gemm"):
                scores = query @ part.T
            self.forbidden.mark(scores, -torch.inf, block.pairs, start)
            here = torch.arange(start, start + len(part), device=scores.device).expand(len(query), -1)
            best, found = self._kept(torch.cat([best, scores], 1), torch.cat([found, here], 1), n)
        return best, found


@dataclass
class _Block:
    """Unit rows of some queries, their forbidden pairs, and what has been computed for them."""

    query: dict[str, Tensor]
    pairs: tuple[Tensor, Tensor]
    given: Tensor | None = None
    whole: dict[str, Tensor] = field(default_factory=dict)
