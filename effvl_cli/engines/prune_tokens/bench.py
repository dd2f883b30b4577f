"""`effvl prune-tokens bench`: times of pruned towers and the dense one, beside the ratio of multiply-adds."""

from pathlib import Path

from effvl_cli.config.prune_tokens import BenchConfig
from effvl_cli.core import bench
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, tower_latency
from effvl_cli.engines.prune_tokens.context import build_context, tower_summary
from effvl_cli.engines.prune_tokens.preview import preview_bench
from effvl_cli.engines.prune_tokens.selectors import arms, asked_for, refuse_missing

table, preview = bench.table, preview_bench


def run(config: BenchConfig, run: Run) -> None:
    """Time every selector at every keep rate and batch size, in turn with the dense tower."""
    context = build_context(config, run)
    run.report.technique["tower"] = tower_summary(context)
    saved = artefact.load(context, Path(str(config.run)))
    context = artefact.as_saved(context, saved)
    names = asked_for(context)
    for name in names:
        refuse_missing(name, context, saved.predictor)
    tower_latency.compare(
        context,
        arms(context, names, context.config.keep, saved.predictor),
        config.batch_size,
        compiled=config.compile,
        channels_last=config.channels_last,
        end_to_end=config.end_to_end,
    )
