"""`effvl prune-tokens eval`: accuracy of selectors at keep rates."""

from pathlib import Path

from effvl_cli.config.prune_tokens import EvalConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, pictures, setup, summary
from effvl_cli.engines.prune_tokens.evaluation import embed, prune, record, record_controls, result, selector_of
from effvl_cli.engines.prune_tokens.job import tower_summary
from effvl_cli.engines.prune_tokens.oracle import golden
from effvl_cli.engines.prune_tokens.rankings import refuse_other_ranking
from effvl_cli.techniques.prune_tokens.tower import Selector

table = summary.results


def run(config: EvalConfig, run: Run) -> None:
    """Every selector at every keep rate, on the same test images; RUN's prompts at the rate they were tuned for."""
    here = setup.build(config, run)
    run.report.technique["tower"] = tower_summary(here)
    saved = artefact.load(here, Path(str(config.run)))
    test = here.images("test")
    dense = embed(here, test)
    record(here, result(here, "dense", 1.0, test, dense, dense))
    rows = []
    for name in config.selector:
        images, reference = test, dense
        selector: Selector
        if name == "golden":
            refuse_other_ranking(here, saved.manifest["ranking"])
            images, selector, reference = golden(here, test, dense)
        else:
            selector = selector_of(name, here, saved.predictor)
        for keep in config.keep:
            pruned = embed(here, images, prune(here, selector, keep))
            rows.append(result(here, name, keep, images, pruned, reference))
            record(here, rows[-1], _metric(name, keep, config))
            run.check_stop()
    if saved.prompts is not None and saved.predictor is not None and saved.manifest["keep"] in config.keep:
        keep = saved.manifest["keep"]
        pruned = embed(here, test, prune(here, saved.predictor, keep, saved.prompts))
        tuned = result(here, "predictor+tuned", keep, test, pruned, dense, saved.prompts.num_tokens)
        record(here, tuned, _metric("predictor_tuned", keep, config))
    record_controls(here, test, dense)
    pictures.accuracy_curve(here, rows, float(here.accuracy(dense, test.labels).mean()), f"{len(test)} test images")


def _metric(name: str, keep: float, config: EvalConfig) -> str:
    """The keep rate is in the name only where there are several."""
    plain = f"top1_{name.replace('-', '_')}"
    return plain if len(config.keep) == 1 else f"{plain}_keep{keep:g}"
