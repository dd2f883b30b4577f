"""`effvl prune-tokens rank`: writes golden rankings of the training images to the cache."""

from effvl_cli.config.prune_tokens import RankConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, tables
from effvl_cli.engines.prune_tokens.context import build_context, tower_summary
from effvl_cli.engines.prune_tokens.golden_search import rank_training
from effvl_cli.engines.prune_tokens.preview import preview_search
from effvl_cli.engines.prune_tokens.rankings import key_of

table, preview = tables.ranking, preview_search


def run(config: RankConfig, run: Run) -> None:
    """Search the rankings that are not in the cache."""
    context = build_context(config, run)
    run.report.technique["tower"] = tower_summary(context)
    _, ranked = rank_training(context, config.sample_shard)
    run.report.metric("images_ranked", len(ranked.rank), unit="images")
    artefact.save(context, None, None, ranking=key_of(context, "train"))
