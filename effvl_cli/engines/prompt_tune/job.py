"""The whole job: features once, then every method on the same images at every noise rate."""

import resource
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effvl_cli.config.prompt_tune import PromptTuneConfig
from effvl_cli.core.chance import refuse_chance
from effvl_cli.core.run import Run
from effvl_cli.engines.prompt_tune import gradient_analysis, pictures, saved_arms, tables
from effvl_cli.engines.prompt_tune.arms import Comparing, Fitted, Trial, arms_of
from effvl_cli.engines.prompt_tune.context import build_context, cache_mode
from effvl_cli.engines.prompt_tune.features import Features, features_of
from effvl_cli.engines.prompt_tune.figures import area_under
from effvl_cli.engines.prompt_tune.fit_arm import check_arms, fit_arm, zero_shot_head
from effvl_cli.engines.prompt_tune.label_sets import LabelSet, Training, label_sets, training_features, write_noise
from effvl_cli.engines.prompt_tune.measured_arm import record_arm
from effvl_cli.engines.prompt_tune.preview import preview_job
from effvl_cli.engines.prompt_tune.pseudo import pseudo_set, training_source
from effvl_cli.engines.prompt_tune.saved_logits import save_logits
from effvl_cli.engines.prompt_tune.suspect_ranking import rank_suspects, record_suspects

table, preview = tables.results, preview_job

Results = list[tuple[LabelSet, Fitted]]


def run(config: PromptTuneConfig, run: Run) -> None:
    """Train and measure."""
    context = build_context(config, run)
    check_arms(context)
    source = training_source(context)
    sets = [pseudo_set(context, source)] if config.unsupervised else label_sets(context, source)
    write_noise(context, source, sets)
    training = training_features(context, source, sets)
    test = _test_features(context)
    began = time.monotonic()
    reference = _known(context, test)
    results = _compare(context, training, sets, test, reference)
    _note(context, training, test, time.monotonic() - began)
    _degradation(context, results)
    if config.grad_analysis:
        gradient_analysis.record_gradients(run, {labels.shots.rate: labels.suffix for labels in sets})
        pictures.gradients(run, gradient_analysis.gradient_rows(run))
    if config.save_logits:
        save_logits(run, test, {f"{found.arm.name}{labels.suffix}": found.test for labels, found in results})
    if config.num_folds and not config.unsupervised and (config.labels or sets[-1].shots.flipped.any()):
        record_suspects(context, training, rank_suspects(context, training, sets[-1]))
    saved_arms.save(context, results)
    pictures.draw(context, results, test.labels, reference)


def _compare(
    context: Comparing, training: Training, sets: list[LabelSet], test: Features, reference: Tensor
) -> Results:
    results: Results = []
    for labels in sets:
        trial = Trial(context, training, labels, test)
        for arm in arms_of(context.config):
            fitted = fit_arm(trial, arm)
            record_arm(trial, fitted, reference)
            results.append((labels, fitted))
            context.run.check_stop()
    return results


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


def _note(context: Comparing, training: Training, test: Features, seconds: float) -> None:
    technique = context.run.report.technique
    made = {id(part): part for part in (training.centre, training.views, test) if part is not None}
    technique["cache_mode"] = cache_mode(context)
    technique["classes"] = list(context.classes)
    technique["templates"] = list(context.templates)
    technique["split"] = {
        "digest": training.source.fingerprint(),
        "comparable": not getattr(training.source, "remark", ""),
        "counts": {"train": len(training.centre), "test": len(test)},
    }
    technique["timing"] = {
        "cache_s": sum(part.seconds for part in made.values()),
        "train_s": sum(row["seconds"] or 0.0 for row in _rows(technique)),
        "methods_s": seconds,
        "peak_mem_mb": _peak_memory(context),
    }


def _rows(technique: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = technique.get("results", [])
    return found


def _peak_memory(context: Comparing) -> float:
    device = context.run.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _degradation(context: Comparing, results: Results) -> None:
    """Mean accuracy over the noise rates, for each method, where there are several."""
    by_arm: dict[str, list[tuple[float, float]]] = {}
    for labels, found in results:
        top1 = context.run.report.metrics[f"top1_{found.arm.name}{labels.suffix}"].value
        by_arm.setdefault(found.arm.name, []).append((labels.shots.rate, float(top1 or 0.0)))
    for name, points in by_arm.items():
        if len(points) > 1:
            rates, values = zip(*points, strict=True)
            context.run.report.metric(f"auc_{name}", area_under(rates, values), split="test")
