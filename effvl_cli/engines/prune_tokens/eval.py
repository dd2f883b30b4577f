"""`effvl prune-tokens eval`: accuracy of selectors at keep rates."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effvl_cli.config.prune_tokens import EvalConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, pictures, setup, summary
from effvl_cli.engines.prune_tokens.evaluation import (
    arm,
    asked_for,
    embed,
    prune,
    record,
    record_controls,
    record_mac_ratio,
    refuse_missing,
    result,
    selector_of,
)
from effvl_cli.engines.prune_tokens.job import tower_summary
from effvl_cli.engines.prune_tokens.oracle import golden
from effvl_cli.engines.prune_tokens.rankings import refuse_other_ranking
from effvl_cli.techniques.prune_tokens.tower import WrappedTower

table = summary.results


def run(config: EvalConfig, run: Run) -> None:
    """Every selector at every keep rate, on the same test images; RUN's prompts at the rates they were tuned for."""
    here = setup.build(config, run)
    run.report.technique["tower"] = tower_summary(here)
    keeps: tuple[float, ...] = tuple(dict.fromkeys(here.config.keep))
    names = asked_for(here)
    saved = artefact.load(here, Path(str(config.run)))
    _refuse_early(here, names, saved)
    test = here.images("test")
    dense = embed(here, test)
    record(here, result(here, "dense", 1.0, test, dense, dense))
    searched = golden(here, test, dense) if "golden" in names else None
    rows: list[dict[str, Any]] = []
    with run.progress("selectors", len(names) * len(keeps)) as progress:
        for name, keep in itertools.product(names, keeps):
            images, reference = test, dense
            if name == "golden" and searched:
                images, selector, reference = searched
                vision: WrappedTower = prune(here, selector, keep)
            else:
                vision = arm(here, name, keep, saved.predictor)
            rows.append(result(here, name, keep, images, embed(here, images, vision), reference))
            record(here, rows[-1], _metric(name, keep, keeps))
            progress.update(len(rows))
            run.check_stop()
    for keep in saved.tuned_for(keeps):
        tuned = prune(here, selector_of("predictor", here, saved.predictor), keep, saved.prompts)
        pruned = embed(here, test, tuned)
        rows.append(result(here, "predictor+tuned", keep, test, pruned, dense, saved.prompts))
        record(here, rows[-1], _metric("predictor_tuned", keep, keeps))
    record_controls(here, test, dense)
    if len(keeps) == 1:
        record_mac_ratio(here, "predictor" if "predictor" in names else names[0], keeps[0])
    accuracy, note = float(here.accuracy(dense, test.labels).mean()), f"{len(test)} test images"
    pictures.accuracy_curve(here, rows, accuracy, note)
    pictures.cost_curve(here, rows, accuracy, note)


def _refuse_early(here: setup.Setup, names: Sequence[str], saved: artefact.Artefact) -> None:
    """Before anything is measured, what the last selector of a list could find missing."""
    for name in names:
        refuse_missing(name, here, saved.predictor)
    if "golden" in names:
        if not here.config.num_golden:
            raise UsageError("--num-golden is 0, and selector golden searches test images", "Give 1 or more")
        refuse_other_ranking(here, saved.manifest["ranking"], of_other_data=True)


def _metric(name: str, keep: float, keeps: tuple[float, ...]) -> str:
    """The keep rate is in the name only where there are several."""
    plain = f"top1_{name.replace('-', '_')}"
    return plain if len(keeps) == 1 else f"{plain}_keep{keep:g}"
