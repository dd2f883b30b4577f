"""`effvl prompt-tune eval`: methods of an earlier run on other data or with other class names; ensembles of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effvl_cli.config.prompt_tune import EvalConfig
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.files import file_or_folder
from effvl_cli.core.find_run import find_run
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, percent, points
from effvl_cli.engines.prompt_tune import saved_arms
from effvl_cli.engines.prompt_tune.context import Context, build_context
from effvl_cli.engines.prompt_tune.features import features_of
from effvl_cli.engines.prompt_tune.figures import figures, per_class
from effvl_cli.engines.prompt_tune.saved_arms import Saved, SavedArm
from effvl_cli.engines.prompt_tune.saved_logits import save_logits
from effvl_cli.models.openclip_prompts import check_room
from effvl_cli.models.tuned_prompts import KIND
from effvl_cli.techniques.prompt_tune.class_head import ClassHead
from effvl_cli.techniques.prompt_tune.learner import PromptLearner

ENSEMBLE = "_ensemble"
Heads = dict[str, ClassHead]


def run(config: EvalConfig, run: Run) -> None:
    """Measure every method that fits the classes; of several runs, each one and the mean of their logits."""
    context = build_context(config, run, _names(config.classes))
    folders = [Path(str(config.run)), *(find_run(KIND, name) for name in config.ensemble)]
    heads = [_heads_of(context, folder) for folder in folders]
    source = context.source(config.eval_split)
    if len(source.classes) != len(context.classes):
        raise UsageError(
            f"--classes has {len(context.classes)} names, and {config.data} has {len(source.classes)} classes",
            "Give one for each class, in order",
        )
    if source.endless:
        raise DataError(f"{source.name} {source.split} is endless", "Give --eval-split test")
    images = features_of(context.network, source, np.arange(len(source)), config, run)
    zero_shot = (_zero_shot(context)(images.first).argmax(1) == images.labels).float()
    if not heads[0]:
        raise UsageError(
            f"nothing of {folders[0]} goes with other class names: only prompts do that share their tokens",
            "Give the run's own classes, or a run with --method prompt",
        )
    logits = [{key: head(images.first) for key, head in own.items()} for own in heads]
    measured = dict(logits[0])
    if len(logits) > 1:
        shared = [key for key in logits[0] if all(key in other for other in logits)]
        measured |= {f"{key}{ENSEMBLE}": torch.stack([own[key] for own in logits]).mean(0) for key in shared}
        _note_singles(context, shared, logits, images.labels)
    for key, found in measured.items():
        _record(context, key, found, images.labels, zero_shot)
    if config.save_logits:
        save_logits(run, images, measured)


def _names(given: str | None) -> tuple[str, ...] | None:
    """Class names of --classes: separated by "|", or a file with one per line."""
    if given is None:
        return None
    try:
        is_file = file_or_folder(given) == "file"
        words = Path(given).read_text(encoding="utf-8").splitlines() if is_file else given.split("|")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {given} cannot be read: {error}", "Give names, or a UTF-8 file") from error
    return tuple(word.strip() for word in words if word.strip())


def _zero_shot(context: Context[EvalConfig]) -> ClassHead:
    return ClassHead(context.classifier.cpu(), scale=context.scale)


def _heads_of(context: Context[EvalConfig], folder: Path) -> Heads:
    """Class weights of the methods of a run for the classes at hand.

    Raises:
        ModelError: another model than the run's, or no run.
    """
    saved = saved_arms.load(folder)
    saved_arms.refuse_other(folder, saved, context)
    same = list(context.classes) == saved.manifest["classes"]
    found = {arm.key: _head_of(context, saved, arm, same=same) for arm in saved.arms}
    left = [key for key, head in found.items() if head is None]
    if left:
        context.run.warn(f"of {folder}, these belong to its own classes and are left out: {', '.join(left)}")
    return {key: head for key, head in found.items() if head is not None}


def _head_of(context: Context[EvalConfig], saved: Saved, arm: SavedArm, *, same: bool) -> ClassHead | None:
    """None for what belongs to the run's own classes, where there are others."""
    if arm.about["method"] == "zero-shot":
        return _zero_shot(context)
    if same:
        return arm.head
    tokens = arm.learned.get("context")
    if arm.about["method"] != "prompt" or tokens is None or tokens.ndim != 2:
        return None
    check_room(context.pieces, len(tokens))
    position = arm.about["edit"]["args"]["position"]
    learner = PromptLearner(context.tower, context.pieces, tokens.to(context.run.device), position=position)
    with torch.no_grad():
        weight = learner.to(context.run.device)().cpu()
    return ClassHead(weight, scale=arm.head.scale)


def _note_singles(
    context: Context[EvalConfig], shared: list[str], logits: Sequence[Mapping[str, Tensor]], labels: Tensor
) -> None:
    """Accuracies of the runs one by one, and their mean."""
    for key in shared:
        each = torch.tensor([float((own[key].argmax(1) == labels).double().mean()) for own in logits])
        error = float(each.std(correction=1)) / len(each) ** 0.5
        context.run.report.metric(f"top1_{key}_mean", float(each.mean()), se=error, split="runs", n=len(each))
        context.run.report.technique.setdefault("singles", {})[key] = each.tolist()


def _record(context: Context[EvalConfig], key: str, logits: Tensor, labels: Tensor, zero_shot: Tensor) -> None:
    report, split = context.run.report, context.config.eval_split
    found = figures(logits, labels, zero_shot)
    report.metric(f"top1_{key}", found["top1"], se=found["se"], split=split, n=len(labels))
    for name in ("top5", "macro_acc", "macro_f1"):
        report.metric(f"{name}_{key}", found[name], split=split, n=len(labels))
    report.metric(f"ece15_{key}", found["ece15"], split=split, n=len(labels), higher_is_better=False)
    row: dict[str, Any] = {"key": key, **found, "acc_per_class": per_class(logits, labels, len(context.classes))}
    report.technique.setdefault("results", []).append(row)
    report.technique["classes"] = list(context.classes)


def table(report: Report) -> Table:
    """A row for each method."""

    def cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
        return (
            row["key"],
            percent(row["top1"]),
            percent(row["se"], 2),
            points(row["delta"]),
            percent(row["delta_se"], 2),
            percent(row["top5"]),
            percent(row["macro_acc"]),
            percent(row["ece15"]),
            row["n"],
        )

    columns = ("method", "top-1 %", "SE", "± zero-shot", "SE", "top-5 %", "macro %", "ECE %", "n")
    rows = report.technique.get("results", [])
    singles = report.technique.get("singles", {})
    notes = tuple(
        f"{key}: the runs one by one {', '.join(f'{100 * value:.1f}' for value in each)}"
        for key, each in singles.items()
    )
    data = report.data[0].name if report.data else ""
    return Table(f"{report.command}: {data}", columns, tuple(cells(row) for row in rows), notes)
