"""Retrieval of clips by their features: nearest neighbours by cosine, and R@K.

The protocol is CoCLR's (arXiv 2010.09709, sec. 4.2; in its code `eval/main_classifier.py`): a test clip has found its
class if one of the K nearest training clips has it. Features are centred before they are normalised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.techniques.cpr_mine.selection import in_order, top_n

Center = Literal["own", "gallery", "none"]
KS = (1, 5, 10, 20, 50)
_BLOCK = 2**24  # similarities held at once


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of the gallery, in order: higher similarity first, then lower index.

    Attributes:
        indices: (Q, K) int64.
        similarities: (Q, K) float32; -inf where the gallery had no more rows, and the index is then -1.
    """

    indices: Tensor
    similarities: Tensor


def centred(queries: Tensor, gallery: Tensor, center: Center) -> tuple[Tensor, Tensor]:
    """Unit rows, after subtraction of a mean.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        center: "own": each set's own mean, as in the official code; "gallery": the gallery's from both, which uses no
            statistics of the queries; "none".

    Returns:
        (Q, D) and (G, D) float32; a row of zeros stays one.
    """
    queries, gallery = queries.float(), gallery.float()
    if center != "none":
        mean = gallery.mean(0)
        queries = queries - (queries.mean(0) if center == "own" else mean)
        gallery = gallery - mean
    return F.normalize(queries, dim=1), F.normalize(gallery, dim=1)


def nearest(queries: Tensor, gallery: Tensor, k: int, *, without: Tensor | None = None) -> Neighbours:
    """The k nearest rows of the gallery by dot product, exactly.

    Args:
        queries: (Q, D) unit rows.
        gallery: (G, D) unit rows.
        k: how many; at most G are found.
        without: (Q,) int64, for each query a row of the gallery that is left out, e.g. itself; -1: none.
    """
    k = min(k, len(gallery))
    parts = []
    for rows in torch.arange(len(queries), device=queries.device).split(max(1, _BLOCK // max(1, len(gallery)))):
        found = queries[rows] @ gallery.T
        if without is not None:
            left_out = without[rows]
            there = (left_out >= 0).nonzero().flatten()
            found[there, left_out[there]] = -torch.inf
        places = top_n(found, k)
        parts.append(in_order(found.gather(1, places), places))
    if not parts:
        return Neighbours(torch.empty(0, k, dtype=torch.int64), torch.empty(0, k))
    values, places = (torch.cat(column) for column in zip(*parts, strict=True))
    return Neighbours(places.masked_fill(values == -torch.inf, -1), values)


def hits(found: Neighbours, labels: Tensor, gallery_labels: Tensor, ks: Sequence[int] = KS) -> dict[int, Tensor]:
    """0/1 (Q,) for each K: whether one of the K nearest has the query's label; a label of -1 is nobody's."""
    own = labels[:, None]
    if not len(gallery_labels):
        return {k: torch.zeros(len(labels)) for k in ks}
    same = (gallery_labels[found.indices] == own) & (found.indices >= 0) & (own >= 0)
    return {k: same[:, :k].any(1).float() for k in ks}


def chance(labels: Tensor, gallery_labels: Tensor, ks: Sequence[int] = KS) -> dict[int, float]:
    """R@K of a random order of the gallery: 1 - C(G - n, K) / C(G, K) for a class of n, averaged over the queries."""
    total = len(gallery_labels)
    known = labels[labels >= 0]
    if not total or not len(known):
        return {k: 0.0 for k in ks}
    counts = torch.stack([(gallery_labels == label).sum() for label in known.unique()]).double()
    weights = torch.stack([(known == label).sum() for label in known.unique()]).double() / len(known)
    found = {}
    for k in ks:
        drawn = torch.arange(min(k, total), dtype=torch.float64)
        missed = ((total - counts[:, None] - drawn) / (total - drawn)).clamp(min=0).prod(1)
        found[k] = float((weights * (1 - missed)).sum())
    return found
