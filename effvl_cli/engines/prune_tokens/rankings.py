"""Golden rankings of many images: searched in shards, cached by content, distributed over processes."""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.cache import Rows
from effvl_cli.core.checkpoint import check_settings
from effvl_cli.core.errors import ModelError, NumericalError
from effvl_cli.core.report import physical_memory
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.prune_tokens.context import Searching
from effvl_cli.techniques.prune_tokens.candidates import auto_candidate_tokens
from effvl_cli.techniques.prune_tokens.ranking import Ranking, golden_ranking
from effvl_cli.techniques.prune_tokens.scorer_table import SCORERS, Known
from effvl_cli.techniques.prune_tokens.tower import NonFiniteError

SHARD = 32  # images lost by an interruption at most
FORMAT = 3  # raised whenever the scores change, so that older rankings are not reused
FIELDS = ("rank", "passes")  # that are read again
_TENSORS = ("rank", "removal_score", "round", "passes", "dense")


@dataclass(frozen=True)
class Ranked:
    """Rankings of a list of images, and the cost of the search."""

    rank: Tensor
    """(M, N) int16, 0 = least important."""
    passes: int
    searched: int
    seconds: float
    key: str
    candidate_tokens: int

    def summary(self, context: Searching) -> dict[str, Any]:
        """For the report."""
        return {
            "key": self.key,
            "images": len(self.rank),
            "searched_now": self.searched,
            "passes": self.passes,
            "scorer": context.config.scorer,
            "block": context.config.block,
            "stride": context.config.block_stride,
            "group": context.config.group,
            "seconds": self.seconds,
            "candidate_tokens": self.candidate_tokens,
            "fields": key_of(context, "train"),
        }


def key_of(context: Searching, split: str) -> dict[str, Any]:
    """Everything that a ranking of this split depends on."""
    config = context.config
    return {
        "format": FORMAT,
        "data": config.data,
        "split": split,
        "model": context.network.name,
        "weights": context.network.weights_sha256,
        "preprocess": context.network.preprocess.to_dict(),
        "grid": list(context.tower.grid),
        "layer": context.layer,
        "scorer": config.scorer,
        "score_space": config.score_space,
        "maxconf_anchor": config.maxconf_anchor,
        "feature_space": config.feature_space,
        "classifier": _classifier(context),
        "block": config.block,
        "block_stride": config.block_stride,
        "group": config.group,
        "rank_until": config.rank_until,
        "shortlist": config.shortlist,
        "precision": "fp32",
    }


def _classifier(context: Searching) -> str | None:
    """Digest of the texts behind the class weights, for scorers that use them.

    The weights themselves differ in their last bits from device to device.
    """
    if not SCORERS[context.config.scorer].by_class:
        return None
    return hashlib.sha256(json.dumps([context.classes, context.templates]).encode()).hexdigest()[:16]


def rank_images(context: Searching, images: Decoded, phase: str) -> Ranked:
    """Rank images, using the cache where possible; each shard is saved when it is done.

    Raises:
        ModelError: gradients of the tower are not informative.
        NumericalError: a score is not finite.
        Preempted: asked to stop between two shards.
    """
    if (
        SCORERS[context.config.scorer].by_gradients or context.config.shortlist
    ) and not context.tower.pools_prefix_only:
        raise ModelError(
            f"--scorer taylor and --shortlist: {context.network.name} reads its embedding from patches, "
            "which gradients of the attention do not reach",
            "Use --scorer feature without --shortlist",
        )
    entry = context.run.cache.entry("rankings", key_of(context, images.source.split))
    # A path does not identify its content: names alone would reuse another folder's rankings.
    names = images.digests(labelled=SCORERS[context.config.scorer].by_label)
    stored = Rows(entry, context.run.warn)
    known = stored.load(FIELDS)
    missing = [row for row, name in enumerate(names) if name not in known]
    distributed.barrier()  # every process has read the same cache before any adds to it
    if missing and len(missing) < len(names):
        context.run.log(f"{phase}: {len(names) - len(missing)} of {len(names)} rankings taken from the cache")
    if context.run.attempt > 1:
        context.run.resumed(phase, len(names) - len(missing))
    started = time.monotonic()
    tokens = _candidate_tokens(context)
    _search(context, images, names, missing, stored, phase, tokens)
    distributed.barrier()
    if missing:
        known = stored.load(FIELDS)
    rows = [known[name] for name in names]
    return Ranked(
        torch.stack([row[0] for row in rows]),
        sum(int(row[1]) for row in rows),
        len(missing),
        time.monotonic() - started,
        entry.name,
        tokens,
    )


def _search(
    context: Searching, images: Decoded, names: list[bytes], missing: list[int], stored: Rows, phase: str, tokens: int
) -> None:
    share = distributed.shard(len(missing))
    mine = missing[share.start : share.stop]
    passes, started = 0, time.monotonic()
    shards = max(-(-len(range_) // SHARD) for range_ in _shares(len(missing)))
    with context.run.progress(phase, len(mine)) as progress:
        for number in range(shards):  # as many rounds on every process, so that a stop request reaches all at once
            rows = mine[number * SHARD : (number + 1) * SHARD]
            if rows:
                part = _rank(context, images, rows, tokens)
                stored.save([names[row] for row in rows], {name: getattr(part, name) for name in _TENSORS})
                passes += int(part.passes.sum())
                rate = passes / (time.monotonic() - started)
                progress.update(number * SHARD + len(rows), candidates_per_s=rate)
            context.run.check_stop()


def _shares(total: int) -> list[range]:
    size = distributed.world().size
    return [range(r * total // size, (r + 1) * total // size) for r in range(size)]


def _rank(context: Searching, images: Decoded, rows: list[int], tokens: int) -> Ranking:
    config, scorer = context.config, SCORERS[context.config.scorer]
    known = Known(
        labels=images.labels[rows],
        classifier=context.classifier,
        tau=context.tau,
        space=config.score_space,
        anchor_first=config.maxconf_anchor == "first",
    )
    batch = context.network.preprocess.normalise(images[rows].to(context.run.device))
    try:
        return golden_ranking(
            context.tower,
            batch,
            layer=context.layer,
            scorer=scorer.make(known),
            block=config.block,
            block_stride=config.block_stride,
            group=config.group,
            rank_until=config.rank_until,
            taylor=scorer.by_gradients,
            shortlist=config.shortlist,
            pool=context.tower.pooled if config.feature_space == "pre-proj" else None,
            candidate_tokens=tokens,
        )
    except NonFiniteError as error:
        names = ", ".join(images.ids[rows[k]] for k in error.samples[:5])
        raise NumericalError(f"scores of {names} are not finite", "The weights or the image hold NaN") from error


def _candidate_tokens(context: Searching) -> int:
    if context.config.candidate_tokens:
        return context.config.candidate_tokens
    device = context.run.device
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else physical_memory()
    ratio = context.shape.mlp_width / context.shape.width
    return auto_candidate_tokens(memory, context.shape.width, ratio, cpu=device.type == "cpu")


def refuse_other_ranking(context: Searching, saved: dict[str, Any], *, of_other_data: bool = False) -> None:
    """Compare an earlier run's ranking key with this run's.

    Args:
        context: this run's.
        saved: the key of the earlier one.
        of_other_data: whether it may have ranked images of other data.

    Raises:
        ModelError: they differ; every differing field is listed.
    """
    ours = key_of(context, "train")
    if of_other_data:
        ours = {name: value for name, value in ours.items() if name not in ("data", "classifier")}
    hint = "Leave those options out, or rank again with `effvl prune-tokens rank`"
    check_settings("the rankings of that run have", saved, ours, hint)
