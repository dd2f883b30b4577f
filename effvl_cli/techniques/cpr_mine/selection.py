"""The n largest of many scores, ties to the lowest bank row. b queries, m candidates.

Ours: the choice by groups gives exactly what a sort of all scores gives.
"""

import torch
from torch import Tensor

SPARSE = 32  # scores for each wanted one from which groups pay
TIED_BYTES = 24  # of working memory for each score of a row in which equal scores compete for the last places


def top_n(scores: Tensor, n: int, rows: Tensor | None = None, *, tie_bytes: int = 2**24) -> Tensor:
    """Positions of the n largest scores of each row, in no order; of equal ones those of the lowest bank rows.

    One selection of n + 1; only rows whose n-th and (n+1)-th value are equal are looked at again.

    Args:
        scores: (b, m), not NaN; -inf marks a candidate that does not count.
        n: at least 1.
        rows: (b, m) bank row of each candidate; None: its position.
        tie_bytes: working memory for rows with ties.

    Returns:
        (b, min(n, m)) int64.
    """
    count, width = scores.shape
    if n >= width:
        return torch.arange(width, device=scores.device).expand(count, width)
    values, places = _largest(scores, n + 1)
    least, where = values.min(1, keepdim=True)
    tied = (values == least).sum(1).gt(1) & least[:, 0].isfinite()
    found = places.scatter_(1, where, places[:, -1:].clone())[:, :n]  # the last takes the place of the least
    again = tied.nonzero()[:, 0]
    for part in again.split(max(1, tie_bytes // (TIED_BYTES * width))) if len(again) else ():
        found[part] = _of_tied(scores[part], least[part], n, None if rows is None else rows[part])
    return found


def _largest(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest values of each row (b, m) and their positions, in no order.

    Of few among many, the maxima of groups are looked at first: the n groups with the largest hold n values that no
    value elsewhere is above.
    """
    width = scores.shape[1]
    size = group_size(width, n)
    if size == 1:
        found = scores.topk(n, dim=1, sorted=False)
        return found.values, found.indices
    count = width // size  # every count-th score belongs to one group; the last few to none
    groups = scores[:, : count * size].unflatten(1, (size, count)).amax(1).topk(n, dim=1, sorted=False).indices
    steps = torch.arange(0, count * size, count, device=scores.device)
    rest = torch.arange(count * size, width, device=scores.device).expand(len(scores), -1)
    places = torch.cat([(groups[:, :, None] + steps).flatten(1), rest], 1)
    values, chosen = scores.gather(1, places).topk(n, dim=1, sorted=False)
    return values, places.gather(1, chosen)


def group_size(width: int, n: int) -> int:
    """Scores in a group, so that as many maxima are looked at as members of the chosen groups; 1: no groups."""
    share = width // n
    return 1 if share < SPARSE else 2 ** (share.bit_length() // 2)


def _of_tied(scores: Tensor, least: Tensor, n: int, rows: Tensor | None) -> Tensor:
    """Positions (b, n): all scores above the n-th largest value, and the first of those equal to it."""
    order = None if rows is None else rows.argsort(1)
    if order is not None:
        scores = scores.gather(1, order)
    above = scores > least
    room = n - above.sum(1, keepdim=True)
    equal = scores == least
    kept = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
    places = kept.nonzero()[:, 1].view(len(scores), n)
    return places if order is None else order.gather(1, places)


def in_order(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and bank rows (b, n), the highest score first, equal ones by bank row."""
    by_row = rows.argsort(1)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return scores.gather(1, order), rows.gather(1, order)
