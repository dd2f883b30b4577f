"""Retraining after the compaction: kept weights and scores learn again, and the result counts only if it is better."""

from functools import partial
from typing import Any

from effvl_cli.core.loop import FitResult
from effvl_cli.engines.continual import phase_training
from effvl_cli.engines.continual.attempt import Attempt, after_update
from effvl_cli.engines.continual.phase_training import Course
from effvl_cli.techniques.continual.ratio_choice import adopt_retrained


def wanted(attempt: Attempt, *, has_own: bool) -> bool:
    """Whether the task is retrained: not the first one, and not one without weights of its own."""
    config = attempt.job.config
    return config.method == "cpg" and attempt.job.number > 1 and has_own and bool(config.retrain_epochs)


def retrain(attempt: Attempt, selected: float) -> dict[str, Any]:
    """Train from the selected stage, and go on from the better of the two.

    Args:
        attempt: whose trail ends with the selected stage.
        selected: its accuracy.

    Returns:
        `adopted`, `val`, `epochs`.
    """
    before = attempt.trail.last
    phase = f"{attempt.prefix}-retrain"
    found = attempt.trail.follow(
        phase,
        partial(_fit, attempt, phase),
        partial(_measure, attempt, phase),
        prepare=lambda: attempt.live.owned.reset_scores(),
    )
    adopted = adopt_retrained(selected, attempt.passes(found))
    if not adopted:
        attempt.trail.back_to(before)
    return {"adopted": adopted, "val": found["val"], "epochs": found["epochs"]}


def _fit(attempt: Attempt, phase: str) -> FitResult:
    config = attempt.job.config
    course = Course(
        phase,
        attempt.stream("retrain"),
        config.retrain_epochs or 0,
        lambda t: 1.0,
        best_from=1,
        patience=config.retrain_patience,
    )
    return attempt.fit(course, config.retrain_lr, config.retrain_pick_lr, partial(after_update, attempt.live))


def _measure(attempt: Attempt, phase: str, fitted: FitResult) -> dict[str, Any]:
    attempt.live.check(phase)
    per_epoch = phase_training.steps_per_epoch(attempt.job.config, attempt.job.data)
    return {**attempt.accuracies(), "epochs": phase_training.epochs_of(fitted, per_epoch)}
