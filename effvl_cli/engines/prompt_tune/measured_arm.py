"""A method's row of the report, and its metrics."""

from torch import Tensor

from effvl_cli.engines.prompt_tune.arms import Fitted, Trial
from effvl_cli.engines.prompt_tune.figures import figures, memorised, per_class

SECONDARY = ("top5", "macro_acc", "macro_f1", "ece15")


def record_arm(trial: Trial, fitted: Fitted, reference: Tensor) -> None:
    """Record a method's figures on the test images.

    Args:
        trial: what it was trained and measured on.
        fitted: the method.
        reference: (M,) 0/1 of zero-shot on the test images.
    """
    report, labels = trial.context.run.report, trial.test.labels
    found = figures(fitted.test, labels, reference)
    key, n = f"{fitted.arm.name}{trial.labels.suffix}", len(labels)
    report.metric(f"top1_{key}", found["top1"], se=found["se"], split="test", n=n)
    if fitted.arm.method != "zero-shot":
        report.metric(f"gain_{key}", found["delta"], se=found["delta_se"], split="test", n=n)
    for name in SECONDARY:
        better = name != "ece15"
        report.metric(f"{name}_{key}", found[name], split="test", n=n, higher_is_better=better)
    row = {
        "method": fitted.arm.method,
        "loss": fitted.arm.loss or None,
        "key": key,
        "rate": trial.labels.rate,
        **found,
        "memorisation": memorised(fitted.train, trial.labels.shots),
        "acc_per_class": per_class(fitted.test, labels, len(trial.context.classes)),
        "steps": fitted.about.get("steps"),
        "seconds": fitted.about.get("seconds"),
        "about": fitted.about,
    }
    report.technique.setdefault("results", []).append(row)
