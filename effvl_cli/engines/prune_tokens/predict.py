"""`effvl prune-tokens predict`: a predictor from the rankings of an earlier run."""

from pathlib import Path

from effvl_cli.config.prune_tokens import PredictConfig
from effvl_cli.core.checkpoint import read_manifest
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, setup, summary
from effvl_cli.engines.prune_tokens.job import tower_summary
from effvl_cli.engines.prune_tokens.predictor import train_predictor
from effvl_cli.engines.prune_tokens.rankings import refuse_other_ranking
from effvl_cli.engines.prune_tokens.search import rank_training

table = summary.figures


def run(config: PredictConfig, run: Run) -> None:
    """Train on RUN's rankings; those that are not in the cache any more are searched again."""
    here = setup.build(config, run)
    refuse_other_ranking(here, read_manifest(Path(str(config.run)))["ranking"])
    run.report.technique["tower"] = tower_summary(here)
    training, ranked = rank_training(here)
    predictor = train_predictor(here, training, ranked.rank)
    about = run.report.technique["predictor"]
    for name, value in (("overlap", next(iter(about["overlap"].values()))), ("tau", about["tau"])):
        run.report.metric(name, value, split="held-out ranked images")
    artefact.save(here, predictor, None)
