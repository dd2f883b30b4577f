"""Candidates of the first stage: a random pool for each query, or what a faiss index finds. N items, M candidates."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.errors import MissingPackageError
from effvl_cli.techniques.cpr_mine.cascade import Candidates, mine, unit_rows
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.stages import Stage

SAMPLED = 1000  # queries on which the recall of an index is measured
PROBES = 16  # lists that faiss-ivf searches for each query, of about sqrt(N)
LINKS = 32  # of each item in the graph of faiss-hnsw
SPARE = 64  # candidates above the first stage's size, for those that are forbidden


def pool(num_items: int, size: int, seed: int) -> tuple[int, Candidates]:
    """M random items for each query, the same whatever the block and the number of processes."""

    def draw(rows: range, unit: Mapping[str, Tensor]) -> Tensor:
        drawn = np.empty((len(rows), size), np.int64)
        for place, row in enumerate(rows):
            stream = np.random.Generator(np.random.PCG64(seeds.derive(seed, "pool", row)))
            drawn[place] = stream.choice(num_items, size, replace=False, shuffle=False)
        return torch.from_numpy(drawn).to(next(iter(unit.values())).device)

    return size, draw


def require_faiss() -> None:
    """Refuse --stage1-index where faiss is missing.

    Raises:
        MissingPackageError: it is.
    """
    if importlib.util.find_spec("faiss") is None:
        raise MissingPackageError("faiss is not installed, and --stage1-index needs it", "pip install 'effvl[faiss]'")


def index_of(kind: str, rows: Tensor, seed: int) -> Any:
    """An index by inner product over unit rows (N, D).

    Args:
        kind: faiss-flat (exact), faiss-ivf (inverted lists) or faiss-hnsw (a graph).
        rows: of any floating type.
        seed: of the clustering of faiss-ivf.
    """
    import faiss

    dim = rows.shape[1]
    if kind == "faiss-flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 1024
    else:
        lists = max(1, round(len(rows) ** 0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(PROBES, lists)
        index.cp.seed = seed % 2**31
        index.train(_unit(rows))
    for start in range(0, len(rows), 65536):
        index.add(_unit(rows[start : start + 65536]))
    return index


def _unit(rows: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(unit_rows(rows).cpu().numpy())


def by_index(index: Any, view: str, size: int) -> tuple[int, Candidates]:
    """The M nearest items that an index finds in a view; those that it does not find are -1."""
    wanted = min(size + SPARE, index.ntotal)

    def look_up(rows: range, unit: Mapping[str, Tensor]) -> Tensor:
        _, found = index.search(np.ascontiguousarray(unit[view].cpu().numpy()), wanted)
        return torch.from_numpy(found.astype(np.int64)).to(unit[view].device)

    return wanted, look_up


def recall_of(
    candidates: tuple[int, Candidates],
    queries: Mapping[str, Tensor],
    bank: Mapping[str, Tensor],
    stage: Stage,
    forbid: Forbid,
    seed: int,
) -> float:
    """Share of the exact first stage that the index finds, over `SAMPLED` random queries."""
    total = len(queries[stage.view])
    drawn = torch.randperm(total, generator=seeds.generator(seed, "stage-1 recall"))[:SAMPLED]
    some = {stage.view: queries[stage.view][drawn]}
    of_some = Forbid(
        None if forbid.query_ids is None else forbid.query_ids[drawn],
        forbid.bank_ids,
        None if forbid.query_groups is None else forbid.query_groups[drawn],
        forbid.bank_groups,
    )
    here = {stage.view: bank[stage.view]}
    exact, found = (
        mine(some, here, [stage], forbid=of_some, check=False, candidates=given).indices for given in (None, candidates)
    )
    return _overlap(exact, found)


def _overlap(exact: Tensor, found: Tensor) -> float:
    """Share of the exact rows (b, n) that are among those found."""
    shared: Sequence[int] = [
        len(set(one[one >= 0].tolist()) & set(other[other >= 0].tolist()))
        for one, other in zip(exact, found, strict=True)
    ]
    return sum(shared) / max(1, int((exact >= 0).sum()))
