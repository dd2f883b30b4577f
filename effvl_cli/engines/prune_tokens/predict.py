"""`effvl prune-tokens predict`: a predictor from the rankings of an earlier run."""

from pathlib import Path

from effvl_cli.config.prune_tokens import PredictConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, tables
from effvl_cli.engines.prune_tokens.choice import validated
from effvl_cli.engines.prune_tokens.context import build_context, tower_summary
from effvl_cli.engines.prune_tokens.golden_search import rank_training
from effvl_cli.engines.prune_tokens.predictor import train_predictor
from effvl_cli.engines.prune_tokens.preview import preview_predict
from effvl_cli.engines.prune_tokens.rankings import key_of, refuse_other_ranking
from effvl_cli.models.token_pruned_clip import ranking_of

table, preview = tables.figures, preview_predict


def run(config: PredictConfig, run: Run) -> None:
    """Train on RUN's rankings; those no longer in the cache are searched again."""
    context = build_context(config, run)
    refuse_other_ranking(context, ranking_of(Path(str(config.run))))
    run.report.technique["tower"] = tower_summary(context)
    training, ranked = rank_training(context)
    trained = train_predictor(context, training, ranked.rank)
    for name, value in (("overlap", trained.overlap), ("tau", trained.tau)):
        run.report.metric(name, value, split="held-out ranked images")
    context = validated(context, training, trained.module)
    artefact.save(context, trained.module, None, ranking=key_of(context, "train"))
