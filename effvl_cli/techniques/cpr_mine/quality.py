"""How good mined positives are, by labels that mining did not see. B queries, N bank items, k positives, S stages.

The paper (arXiv 2201.07989) reports a "class mining recall" without saying what it divides by; all readings are here.
Items without a label (-1) count nowhere: neither as queries nor as mined items.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from effvl_cli.techniques.cpr_mine.forbid import Forbid, Forbidden

FIGURES = ("precision", "recall", "true_recall", "hit")
PAIRS = 2**22  # looked at at once


@dataclass(frozen=True)
class Quality:
    """Figures of mined positives.

    With P_i the eligible items of a query's class, t_i the mined ones of its class and k_i the mined ones with a label:
    precision t_i / k_i, recall t_i / min(k, |P_i|), true_recall t_i / |P_i|, hit t_i > 0; over queries with |P_i| >= 1.
    coverage of a class: the share of its items that is mined by some query of it.

    Attributes:
        mean: of each figure over queries, of coverage over classes; None where no query counts.
        median: of each figure over classes, a class counting with the mean of its queries.
        per_class: figures of each class that counts, by label.
        queries: that count.
    """

    mean: dict[str, float | None]
    median: dict[str, float | None]
    per_class: dict[int, dict[str, float]]
    queries: int


def eligible(query_labels: Tensor, bank_labels: Tensor, forbid: Forbid | None) -> Tensor:
    """(B,) int64 number of bank items of each query's class that are not forbidden; 0 without a label."""
    known = bank_labels[bank_labels >= 0]
    counts = torch.bincount(known, minlength=int(query_labels.max()) + 1 if len(query_labels) else 0)
    found = counts[query_labels.clamp_min(0)] if len(counts) else torch.zeros_like(query_labels)
    forbidden = Forbidden(forbid, query_labels.device)
    step = max(1, PAIRS // max(1, forbidden.most))
    num_items = len(bank_labels)
    for start in range(0, len(query_labels), step):
        stop = min(start + step, len(query_labels))
        query, row = forbidden.pairs(start, stop)
        pairs = torch.unique(query * num_items + row)  # forbidden by id and by group, it counts once
        query, row = pairs // num_items + start, pairs % num_items
        same = (query_labels[query] == bank_labels[row]) & ~forbidden.is_empty(row)
        found = found.index_add(0, query[same], torch.full_like(query[same], -1))
    empty = bank_labels[forbidden.empty]
    lost = torch.bincount(empty[empty >= 0], minlength=len(counts))
    found = found - lost[query_labels.clamp_min(0)] if len(lost) else found
    return found.masked_fill(query_labels < 0, 0)


def judge(indices: Tensor, query_labels: Tensor, bank_labels: Tensor, candidates: Tensor) -> Quality:
    """Figures of mined positives.

    Args:
        indices: (B, k) bank rows, -1 for none.
        query_labels: (B,), -1 unknown.
        bank_labels: (N,).
        candidates: (B,) |P_i|, see `eligible`.
    """
    found = bank_labels[indices.clamp_min(0)].masked_fill(indices < 0, -1)
    true = (found == query_labels[:, None]) & (query_labels >= 0)[:, None]
    mined, right = (found >= 0).sum(1).double(), true.sum(1).double()
    counts = candidates.double()
    values = {
        "precision": right / mined,  # nan where nothing with a label is mined: left out
        "recall": right / counts.clamp(max=indices.shape[1]),
        "true_recall": right / counts,
        "hit": (right > 0).double(),
    }
    asked = candidates > 0
    labels = query_labels[asked]
    classes = labels.unique().tolist()
    per_class: dict[int, dict[str, float]] = {label: {} for label in classes}
    mean: dict[str, float | None] = {}
    for name in FIGURES:
        kept = values[name][asked]
        mean[name] = _nan_to_none(float(kept.nanmean())) if len(kept) else None
        for label in classes:
            per_class[label][name] = float(kept[labels == label].nanmean())
    covered = torch.zeros(len(bank_labels), dtype=torch.bool, device=indices.device)
    covered[indices[true]] = True
    for label in classes:
        per_class[label]["coverage"] = float(covered[bank_labels == label].double().mean())
    median = {name: _median([row[name] for row in per_class.values()]) for name in (*FIGURES, "coverage")}
    mean["coverage"] = sum(row["coverage"] for row in per_class.values()) / len(classes) if classes else None
    return Quality(mean, median, per_class, len(labels))


def _nan_to_none(value: float) -> float | None:
    return None if value != value else value


def _median(values: list[float]) -> float | None:
    """Middle value, or the mean of both, of those that are numbers."""
    known = [value for value in values if value == value]
    return float(torch.tensor(known, dtype=torch.float64).quantile(0.5)) if known else None


class StageTally:
    """What each stage keeps, counted while it is mined; pass `count` as `on_stage` of `cascade.mine`.

    Args:
        query_labels: (B,), -1 unknown.
        bank_labels: (N,).
        num_stages: S.
    """

    def __init__(self, query_labels: Tensor, bank_labels: Tensor, num_stages: int) -> None:
        self.query_labels, self.bank_labels = query_labels, bank_labels
        shape = len(query_labels), num_stages + 1  # the last column is stage -1, of given candidates
        self.right = torch.zeros(shape, dtype=torch.int64, device=query_labels.device)
        self.known = torch.zeros_like(self.right)

    def count(self, rows: range, number: int, found: Tensor) -> None:
        """Count items of the query's class, and items with a label, among those (b, n) that a stage keeps."""
        found = found.to(self.bank_labels.device)
        labels = self.bank_labels[found.clamp_min(0)].masked_fill_(found < 0, -1)
        asked = self.query_labels[rows.start : rows.stop, None]
        self.right[rows.start : rows.stop, number] = ((labels == asked) & (asked >= 0)).sum(1)
        self.known[rows.start : rows.stop, number] = (labels >= 0).sum(1)


@dataclass(frozen=True)
class StageQuality:
    """Means over queries that count.

    Attributes:
        kept: share of the eligible items of the query's class that are still there.
        purity: share of those that are still there, and have a label, that are of the query's class.
    """

    kept: float | None
    purity: float | None


def judge_stages(right: Tensor, known: Tensor, candidates: Tensor) -> list[StageQuality]:
    """From the counts (B, S) of `StageTally` and (B,) |P_i|."""
    asked = candidates > 0
    total = candidates[asked].double()
    found = []
    for number in range(right.shape[1]):
        there = right[asked, number].double()
        kept, purity = (there / total).nanmean(), (there / known[asked, number].double()).nanmean()
        found.append(StageQuality(_nan_to_none(float(kept)), _nan_to_none(float(purity))))
    return found


def new_share(indices: Tensor, alone: Tensor) -> float | None:
    """Share of the positives (B, k) that are not among the best (B, n) of a view alone."""
    new, step = 0, max(1, PAIRS // max(1, indices.shape[1] * alone.shape[1]))
    for start in range(0, len(indices), step):
        own, theirs = indices[start : start + step], alone[start : start + step]
        new += int(((own >= 0) & ~(own[:, :, None] == theirs[:, None, :]).any(2)).sum())
    valid = int((indices >= 0).sum())
    return new / valid if valid else None


def hubness(indices: Tensor, num_items: int) -> dict[str, float]:
    """How often an item is mined, by (B, k) positives: the most, the 99 % quantile and the share never mined."""
    counts = torch.bincount(indices[indices >= 0], minlength=num_items)
    ordered = counts.sort().values
    place = min(num_items - 1, int(0.99 * num_items))
    return {
        "max": float(ordered[-1]),
        "p99": float(ordered[place]),
        "never": float((counts == 0).double().mean()),
    }


def reciprocity(indices: Tensor) -> float | None:
    """Share of the positives (N, k) of a bank's own items that have their query among theirs."""
    query = torch.arange(len(indices), device=indices.device)[:, None].expand_as(indices)
    valid = indices >= 0
    there, back = query[valid] * len(indices) + indices[valid], indices[valid] * len(indices) + query[valid]
    return float(torch.isin(back, there).double().mean()) if valid.any() else None


def recall_at(
    indices: Tensor, query_labels: Tensor, bank_labels: Tensor, ranks: tuple[int, ...]
) -> Mapping[int, float]:
    """Share of the labelled queries with an item of their class among the first K of (B, k), for each K <= k."""
    asked = query_labels >= 0
    if not asked.any():
        return {}
    found = bank_labels[indices.clamp_min(0)].masked_fill(indices < 0, -1)
    right = (found == query_labels[:, None])[asked]
    return {rank: float(right[:, :rank].any(1).double().mean()) for rank in ranks if rank <= indices.shape[1]}
