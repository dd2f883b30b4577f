"""`effvl prune-tokens tune`: prompts for the predictor of an earlier run."""

from pathlib import Path

from effvl_cli.config.prune_tokens import TuneConfig
from effvl_cli.core.errors import ModelError
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, setup, summary
from effvl_cli.engines.prune_tokens.evaluation import embed, prune, record, record_mac_ratio, result
from effvl_cli.engines.prune_tokens.job import tower_summary
from effvl_cli.engines.prune_tokens.start import check_prompts, prompt_start
from effvl_cli.engines.prune_tokens.tuning import tune_prompts

table = summary.results


def run(config: TuneConfig, run: Run) -> None:
    """Tune, then measure with and without the prompts."""
    here = setup.build(config, run)
    check_prompts(here)
    if prompt_start(here) < here.layer and config.prompts != "text":
        run.warn(
            f"prompts from block {prompt_start(here)} on change what the predictor reads before block {here.layer}; "
            "`effvl prune-tokens` trains it anew on that, tune does not"
        )
    run.report.technique["tower"] = tower_summary(here)
    before = artefact.load(here, Path(str(config.run)))
    if before.predictor is None:
        raise ModelError(f"{config.run} holds no predictor", f"Train one: effvl prune-tokens predict {config.run}")
    prompts = tune_prompts(here, here.few_shot(), before.predictor)
    artefact.save(here, before.predictor, prompts, ranking=before.manifest["ranking"], prompted=before.prompted)
    keep, test = here.config.keep, here.images("test")
    dense = embed(here, test)
    record(here, result(here, "dense", 1.0, test, dense, dense))
    for name, added in (("predictor", None), ("predictor+tuned", prompts)):
        pruned = embed(here, test, prune(here, before.predictor, keep, added))
        record(here, result(here, name, keep, test, pruned, dense, added))
    record_mac_ratio(here, "predictor+tuned", keep, prompts)
