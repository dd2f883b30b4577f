"""The whole job: features once, then every method on the same images at every noise rate."""

import numpy as np
from torch import Tensor

from effvl_cli.config.prompt_tune import PromptTuneConfig
from effvl_cli.core.chance import refuse_chance
from effvl_cli.core.run import Run
from effvl_cli.engines.prompt_tune import tables
from effvl_cli.engines.prompt_tune.arms import Bench, Comparing, Fitted, arms_of, fit_arm, zero_shot_head
from effvl_cli.engines.prompt_tune.context import build_context
from effvl_cli.engines.prompt_tune.features import Features, features_of
from effvl_cli.engines.prompt_tune.figures import figures, memorised, per_class
from effvl_cli.engines.prompt_tune.label_sets import LabelSet, label_sets, training_features

table = tables.results


def run(config: PromptTuneConfig, run: Run) -> None:
    """Train and measure."""
    context = build_context(config, run)
    source = context.source("train")
    sets = label_sets(context, source)
    training = training_features(context, source, sets)
    test = _test_features(context)
    reference = _known(context, test)
    rows: list[tuple[LabelSet, Fitted]] = []
    for labels in sets:
        bench = Bench(context, training, labels, test)
        for arm in arms_of(config):
            fitted = fit_arm(bench, arm)
            _record(bench, fitted, reference)
            rows.append((labels, fitted))
            run.check_stop()


def _test_features(context: Comparing) -> Features:
    source = context.source("test")
    return features_of(context.network, source, np.arange(len(source)), context.config, context.run)


def _known(context: Comparing, test: Features) -> Tensor:
    """(M,) 0/1 of zero-shot on the test images, which must be better than chance."""
    correct = (zero_shot_head(context)(test.first).argmax(1) == test.labels).float()
    refuse_chance(
        context.run,
        context.network.name,
        float(correct.mean()),
        len(context.classes),
        images=f"{len(test)} test images",
        force=context.config.force or context.network.source == "random",  # asked for: --weights none
    )
    return correct


def _record(bench: Bench, fitted: Fitted, reference: Tensor) -> None:
    """A row of the report, and the metrics of a method."""
    report, labels = bench.context.run.report, bench.test.labels
    found = figures(fitted.test, labels, reference)
    suffix, about = bench.labels.suffix, {"split": "test", "n": len(labels)}
    name = fitted.arm.name
    report.metric(f"top1_{name}{suffix}", found["top1"], se=found["se"], **about)
    for key in ("top5", "macro_acc", "macro_f1", "ece15"):
        better = {"higher_is_better": False} if key == "ece15" else {}
        report.metric(f"{key}_{name}{suffix}", found[key], **about, **better)
    row = {
        "method": fitted.arm.method,
        "loss": fitted.arm.loss or None,
        "name": name,
        "rate": bench.labels.shots.rate,
        **found,
        "memorisation": memorised(fitted.train, bench.labels.shots),
        "acc_per_class": per_class(fitted.test, labels, len(bench.context.classes)),
        "steps": fitted.steps,
        "seconds": fitted.seconds,
    }
    report.technique.setdefault("results", []).append(row)
