"""The rankings that a run learns from, and how close its search is to the exact one."""

from dataclasses import replace
from typing import Any

import torch

from effvl_cli.config.prune_tokens import SearchOptions
from effvl_cli.core import sweep
from effvl_cli.core.errors import DataError
from effvl_cli.core.phases import Phases
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.prune_tokens.context import Ranking
from effvl_cli.engines.prune_tokens.evaluation import known_images
from effvl_cli.engines.prune_tokens.rankings import Ranked, rank_images
from effvl_cli.techniques.prune_tokens.predictor import agreement
from effvl_cli.techniques.prune_tokens.scorer_table import SCORERS

AUDITED = 16  # images
KEEPS = (0.8, 0.6, 0.4)  # whose dropped sets are compared


def rank_training(context: Ranking, shard: str = "0/1") -> tuple[Decoded, Ranked]:
    """Rank the few-shot images, or a shard of them, and put the search into the report.

    Raises:
        DataError: the shard holds no image.
        UsageError: a shard that is none.
    """
    config, images = context.config, known_images(context)
    first, count = sweep.parse_shard(shard, "--sample-shard")
    if count > 1:
        total = len(images)
        images = images.take(torch.arange(total)[first::count])
        if not len(images):
            raise DataError(f"--sample-shard {shard} holds none of the {total} images", "Give fewer shards")
    ranked = rank_images(context, images, "ranking")
    found = ranked.summary(context) | {"sample_shard": shard}
    if config.audit:
        found["audit"] = Phases.of(context.run).once("audit of the ranking", lambda: _audit(context, images))
    context.run.report.technique["ranking"] = found
    return images, ranked


def _audit(context: Ranking, images: Decoded) -> list[dict[str, Any]]:
    """Overlap and rank correlation of cheaper searches with the one that removes patch by patch."""
    config = context.config
    some = images.take(torch.linspace(0, len(images) - 1, min(AUDITED, len(images))).long().unique())
    exact = replace(
        config,
        scorer="feature" if SCORERS[config.scorer].by_gradients else config.scorer,
        block=1,
        block_stride=1,
        group=1,
        shortlist=0,
        rank_until=min(config.rank_until, SearchOptions.rank_until),
    )
    searches = {
        "exact greedy": exact,
        "this search": config,
        "one shot": replace(exact, group=0),
        "10 a round": replace(exact, group=10),
    }
    rows, reference = [], None
    for name, search in searches.items():
        ranked = rank_images(replace(context, config=search), some, f"audit, {name}")
        if reference is None:
            reference = ranked.rank
        found = agreement(ranked.rank.float(), reference, KEEPS)
        rows.append({"search": name, "images": len(some), "passes": ranked.passes, **found})
    return rows
