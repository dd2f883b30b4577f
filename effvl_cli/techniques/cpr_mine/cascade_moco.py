"""One view's encoder trained against queues, with positives that a cascade over several views finds in them.

MoCo (He et al., arXiv 1911.05722) with the positives of CoCLR (Han et al., arXiv 2010.09709, sec. 3.2) and of CPR
(Wu et al., arXiv 2201.07989), in the order of the released code. B clips on this process, D numbers of an embedding, N
slots.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.techniques.common.momentum import follow

from .cascade import mine
from .forbid import Forbid
from .infonce import LOSSES, similarity_logits, without_own
from .queue import Queues
from .stages import Stage

TOP = (1, 5)

Rows = Callable[[Tensor], Tensor]


def _same(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class Sharing:
    """How processes exchange rows; the default is that of a single process.

    Attributes:
        gather: joins the rows of all processes, as many from each, in rank order; without gradient.
        own: this process's part of rows that were joined.
        shuffle: draws the permutation, the same on each process, by which the clips of the key encoder are dealt out,
            so that its batch norm does not see the neighbours of a query (shuffled batch norm); None: left in place.
    """

    gather: Rows = _same
    own: Rows = _same
    shuffle: torch.Generator | None = None


@dataclass(frozen=True)
class ClipViews:
    """B videos, two clips of each.

    Attributes:
        query: (B, C, T, H, W) clip 1 in the view that is trained.
        key: (B, C, T, H, W) clip 2 in the same view.
        partners: clip 2 in the views of the frozen encoders.
        clips: (B,) numbers of the videos in the data.
        groups: (B,) numbers of the longer videos that they were cut from.
        labels: (B,) classes, for figures alone; -1 where unknown.
    """

    query: Tensor
    key: Tensor
    partners: Mapping[str, Tensor]
    clips: Tensor
    groups: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Objective:
    """What counts as positive, and what the loss makes of it.

    Attributes:
        listed: (M, k) clips whose keys are positives of each clip of the data, -1 for none; None: none.
        temperature: of the logits.
        momentum: of the key encoder.
        loss: "milnce" or "pernce".
        siblings: whether older keys of the same video are positives, or left out of the loss.
        mined_weight: factor of mined positives inside the sum.
    """

    listed: Tensor | None = None
    temperature: float = 0.07
    momentum: float = 0.999
    loss: Literal["milnce", "pernce"] = "milnce"
    siblings: Literal["positive", "exclude"] = "positive"
    mined_weight: float = 1.0


@dataclass(frozen=True)
class Entries:
    """Rows of all processes for the queues."""

    rows: Mapping[str, Tensor]
    clips: Tensor
    groups: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StepLoss:
    """Loss of this process's clips, what comes into the queues after the update, and figures."""

    loss: Tensor
    entries: Entries
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    mining_s: float = 0.0


class CascadeMoCo(nn.Module):
    """The trained encoder, its moving average and the queues: the state of a training.

    Args:
        encoder: f_q, (B, C, T, H, W) to embeddings (B, D).
        view: what it sees.
        partners: frozen encoders of other views by view. They are no part of the module: its modes and its state
            dict leave them out, and they stay in evaluation mode.
        queues: of this view and the partners'.
        objective: see there.
    """

    def __init__(
        self,
        encoder: nn.Module,
        view: str,
        partners: Mapping[str, nn.Module],
        queues: Queues,
        objective: Objective,
    ) -> None:
        super().__init__()
        self.encoder, self.queues = encoder, queues
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.view, self.objective = view, objective
        self.partners = {name: partner.eval().requires_grad_(False) for name, partner in partners.items()}

    @torch.no_grad()
    def entries(self, views: ClipViews, sharing: Sharing) -> Entries:
        """Keys of this view by the key encoder, of the others by the partners, joined over all processes."""
        rows = {self.view: self._keys(views.key, sharing)}
        for name, partner in self.partners.items():
            rows[name] = sharing.gather(unit(partner(views.partners[name])))
        return Entries(rows, *(sharing.gather(part) for part in (views.clips, views.groups, views.labels)))

    def _keys(self, clips: Tensor, sharing: Sharing) -> Tensor:
        if sharing.shuffle is None:
            return sharing.gather(unit(self.key_encoder(clips)))
        joined = sharing.gather(clips)
        order = torch.randperm(len(joined), generator=sharing.shuffle).to(clips.device)
        keys = sharing.gather(unit(self.key_encoder(sharing.own(joined[order]))))
        return keys[order.argsort()]

    def fill(self, views: ClipViews, sharing: Sharing) -> None:
        """Write a batch into the queues without a step."""
        self.enqueue(self.entries(views, sharing))

    def enqueue(self, entries: Entries) -> None:
        """Write what a step gave, after its update."""
        self.queues.enqueue(entries.rows, entries.clips, entries.groups, entries.labels)

    def step(
        self, views: ClipViews, stages: Sequence[Stage] = (), *, drop_own: bool = False, sharing: Sharing | None = None
    ) -> StepLoss:
        """Loss of a batch against full queues, which stay as they are until `enqueue`.

        Args:
            views: of this process.
            stages: of the cascade; empty: no mining.
            drop_own: whether the own key is no positive where there are others; the same on all processes.
            sharing: between processes.
        """
        sharing = sharing or Sharing()
        query = unit(self.encoder(views.query))
        entries = self.entries(views, sharing)
        keys = sharing.own(entries.rows[self.view])
        with torch.autocast(query.device.type, enabled=False):
            same = views.groups[:, None] == self.queues.groups[None]
            began = time.perf_counter()
            queries = {name: sharing.own(entries.rows[name]) for name in self.partners} | {self.view: query.detach()}
            mined = self._mined(queries, views, stages)
            seconds = time.perf_counter() - began
            logits = similarity_logits(query, keys, self.queues.banks[self.view], self.objective.temperature)
            loss, positive = self._loss(logits, same, mined, drop_own=drop_own)
        logs = self._logs(logits.detach(), positive)
        if stages or self.objective.listed is not None:
            logs |= self._mining_logs(mined, views.labels)
        return StepLoss(loss, entries, logs, seconds)

    @torch.no_grad()
    def _mined(self, queries: Mapping[str, Tensor], views: ClipViews, stages: Sequence[Stage]) -> Tensor:
        """(B, N) bool: slots that the cascade, or the list, gives to each clip."""
        queues, objective = self.queues, self.objective
        clips = views.clips
        found = torch.zeros(len(clips), queues.size + 1, dtype=torch.bool, device=clips.device)
        if stages:
            forbid = Forbid(clips, queues.clips, views.groups, queues.groups)
            mined = mine(dict(queries), queues.banks, list(stages), forbid=forbid, normalize=False, check=False)
            found.scatter_(1, torch.where(mined.valid, mined.indices, queues.size), True)
        found = found[:, : queues.size]
        if objective.listed is not None:
            wanted = objective.listed[clips].to(queues.clips.device)
            for column in wanted.T:
                found |= (column[:, None] == queues.clips[None]) & (column[:, None] >= 0)
        return found

    def _loss(self, logits: Tensor, same: Tensor, mined: Tensor, *, drop_own: bool) -> tuple[Tensor, Tensor]:
        """Mean loss, and (B, 1 + N) positives."""
        objective = self.objective
        own = torch.ones(len(logits), 1, dtype=torch.bool, device=logits.device)
        if objective.siblings == "exclude":
            logits = logits.masked_fill(torch.cat([~own, same], 1), -torch.inf)
            positive = torch.cat([own, mined & ~same], 1)
        else:
            positive = torch.cat([own, mined | same], 1)
        weight = None
        if objective.mined_weight != 1.0:
            weight = torch.ones_like(logits).masked_fill_(torch.cat([~own, mined & ~same], 1), objective.mined_weight)
        used = without_own(positive) if drop_own else positive
        return LOSSES[objective.loss](logits, used, weight).mean(), positive

    @torch.no_grad()
    def _logs(self, logits: Tensor, positive: Tensor) -> dict[str, Tensor]:
        """Whether the own key, and any positive, are among the most similar of all."""
        best = logits.topk(min(max(TOP), logits.shape[1]), dim=1).indices
        hits = positive.gather(1, best)
        found = {f"own_top{k}": (best[:, :k] == 0).any(1).float().mean() for k in TOP}
        found |= {f"positive_top{k}": hits[:, :k].any(1).float().mean() for k in TOP}
        return {**found, "queue_fill": self.queues.fill}

    @torch.no_grad()
    def _mining_logs(self, mined: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Share of the clips with mined positives, and share of right ones among the mined ones with a label."""
        known = mined & (labels[:, None] >= 0) & (self.queues.labels[None] >= 0)
        right = known & (labels[:, None] == self.queues.labels[None])
        return {"mined_rows": mined.any(1).float().mean(), "mined_precision": right.sum() / known.sum().clamp(min=1)}

    def follow(self) -> None:
        """Move the key encoder towards the trained one; buffers of batch norm stay each one's own."""
        follow(self.key_encoder, self.encoder, self.objective.momentum)


def unit(embeddings: Tensor) -> Tensor:
    """Rows of length one, in float32 unless they are more exact."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
