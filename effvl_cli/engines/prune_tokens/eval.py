"""`effvl prune-tokens eval`: accuracy of selectors at keep rates."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from effvl_cli.config.prune_tokens import EvalConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, pictures, tables
from effvl_cli.engines.prune_tokens.context import Context, build_context, tower_summary
from effvl_cli.engines.prune_tokens.evaluation import (
    embed_dense,
    record,
    record_controls,
    record_mac_ratio,
    result,
)
from effvl_cli.engines.prune_tokens.measured import measure
from effvl_cli.engines.prune_tokens.oracle import golden
from effvl_cli.engines.prune_tokens.preview import preview_eval
from effvl_cli.engines.prune_tokens.rankings import refuse_other_ranking
from effvl_cli.engines.prune_tokens.selectors import asked_for, prune, rates, refuse_missing, selector_of, tower_with
from effvl_cli.models.token_pruned_clip import Artefact
from effvl_cli.techniques.prune_tokens.arm_result import ArmResult
from effvl_cli.techniques.prune_tokens.tower import WrappedTower

table, preview = tables.results, preview_eval


def run(config: EvalConfig, run: Run) -> None:
    """Measure every selector at every keep rate on the same test images; prompts at the rates they were tuned for."""
    context = build_context(config, run)
    run.report.technique["tower"] = tower_summary(context)
    keeps: tuple[float, ...] = tuple(dict.fromkeys(context.config.keep))
    names = asked_for(context)
    saved = artefact.load(context, Path(str(config.run)))
    context = artefact.as_saved(context, saved)
    _refuse_early(context, names, saved)
    test = context.images("test")
    dense = embed_dense(context, test)
    record(context, result(context, "dense", 1.0, test, dense, dense))
    searched = golden(context, test, dense) if "golden" in names else None
    rows: list[ArmResult] = []
    arms = [(name, keep) for name in names for keep in rates(context, name, keeps)]
    with run.progress("selectors", len(arms)) as progress:
        for name, keep in arms:
            images, reference = test, dense
            if name == "golden" and searched:
                images, selector, reference = searched
                tower: Callable[[], WrappedTower] = partial(prune, context, selector, keep)
            else:
                tower = partial(tower_with, context, name, keep, saved.predictor)
            rows.append(measure(context, name, keep, images, reference, tower).row)
            record(context, rows[-1], _metric(name, keep, keeps))
            progress.update(len(rows))
            run.check_stop()
    for keep in saved.tuned_for(keeps):
        tuned = partial(prune, context, selector_of("predictor", context, saved.predictor), keep, saved.prompts)
        rows.append(measure(context, "predictor+tuned", keep, test, dense, tuned, saved.prompts).row)
        record(context, rows[-1], _metric("predictor_tuned", keep, keeps))
    record_controls(context, test, dense)
    if len(keeps) == 1:
        record_mac_ratio(context, "predictor" if "predictor" in names else names[0], keeps[0])
    accuracy, note = float(context.accuracy(dense, test.labels).mean()), f"{len(test)} test images"
    pictures.accuracy_curve(context, rows, accuracy, note)
    pictures.cost_curve(context, rows, accuracy, note)


def _refuse_early(context: Context[EvalConfig], names: Sequence[str], saved: Artefact) -> None:
    """Check what any selector of the list needs before anything is measured."""
    for name in names:
        refuse_missing(name, context, saved.predictor)
    if "golden" in names:
        if not context.config.num_golden:
            raise UsageError("--num-golden is 0, and selector golden searches test images", "Give 1 or more")
        refuse_other_ranking(context, saved.manifest["ranking"], of_other_data=True)


def _metric(name: str, keep: float, keeps: tuple[float, ...]) -> str:
    """Name of a metric; the keep rate is in it only where there are several."""
    plain = f"top1_{name.replace('-', '_')}"
    return plain if len(keeps) == 1 else f"{plain}_keep{keep:g}"
