"""`effvl prune-tokens tune`: prompts for the predictor of an earlier run."""

from pathlib import Path

from effvl_cli.config.prune_tokens import TuneConfig
from effvl_cli.core.errors import ModelError
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, tables
from effvl_cli.engines.prune_tokens.context import build_context, tower_summary
from effvl_cli.engines.prune_tokens.evaluation import (
    embed,
    embed_dense,
    known_images,
    record,
    record_mac_ratio,
    result,
)
from effvl_cli.engines.prune_tokens.preview import preview_tune
from effvl_cli.engines.prune_tokens.prompt_init import check_prompts, prompt_start
from effvl_cli.engines.prune_tokens.selectors import prune
from effvl_cli.engines.prune_tokens.tuning import tune_prompts

table, preview = tables.results, preview_tune


def run(config: TuneConfig, run: Run) -> None:
    """Tune, then measure with and without the prompts."""
    context = build_context(config, run)
    check_prompts(context)
    if prompt_start(context) < context.layer and config.prompts != "text":
        run.warn(
            f"prompts from block {prompt_start(context)} on change the inputs of the predictor at block "
            f"{context.layer}; `effvl prune-tokens` trains it again on these, tune does not"
        )
    run.report.technique["tower"] = tower_summary(context)
    before = artefact.load(context, Path(str(config.run)))
    if before.predictor is None:
        raise ModelError(f"{config.run} holds no predictor", f"Train one: effvl prune-tokens predict {config.run}")
    context = artefact.as_saved(context, before)
    prompts = tune_prompts(context, known_images(context), before.predictor)
    artefact.save(
        context,
        before.predictor,
        prompts,
        ranking=before.manifest["ranking"],
        prompted=before.prompted,
        any_keep=config.tune_keeps == "mix",
    )
    keep, test = context.config.keep, context.images("test")
    dense = embed_dense(context, test)
    record(context, result(context, "dense", 1.0, test, dense, dense))
    for name, added in (("predictor", None), ("predictor+tuned", prompts)):
        pruned = embed(context, test, prune(context, before.predictor, keep, added))
        record(context, result(context, name, keep, test, pruned, dense, added))
    record_mac_ratio(context, "predictor+tuned", keep, prompts)
