"""`effvl prune-tokens rank`: golden rankings of the training images, into the cache."""

from effvl_cli.config.prune_tokens import RankConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, setup, summary
from effvl_cli.engines.prune_tokens.job import tower_summary
from effvl_cli.engines.prune_tokens.search import rank_training

table = summary.ranking


def run(config: RankConfig, run: Run) -> None:
    """Search what the cache does not hold."""
    here = setup.build(config, run)
    run.report.technique["tower"] = tower_summary(here)
    _, ranked = rank_training(here)
    run.report.metric("images_ranked", len(ranked.rank), unit="images")
    artefact.save(here, None, None)
