"""Training of one method, or what an earlier attempt of the run has trained."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from effvl_cli.config.prompt_tune import LEARNERS
from effvl_cli.core import seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.core.phases import Phases
from effvl_cli.data.fewshot import few_shot_validation, listed_shots
from effvl_cli.engines.prompt_tune.arms import Arm, Comparing, Fitted, Trial
from effvl_cli.engines.prompt_tune.backbone_finetuning import finetune_backbone
from effvl_cli.engines.prompt_tune.context import num_tokens, prompt_rate
from effvl_cli.engines.prompt_tune.features import Features, features_of
from effvl_cli.engines.prompt_tune.gradient_analysis import GradientWatch, watched_epochs
from effvl_cli.engines.prompt_tune.head_training import loss_of, steps_per_epoch, train_module
from effvl_cli.engines.prompt_tune.learners import learner_of
from effvl_cli.engines.prompt_tune.linear_probe import Probe, linear_probe, linear_probe_sweep
from effvl_cli.techniques.prompt_tune.class_head import ClassHead
from effvl_cli.techniques.prompt_tune.learner import PromptLearner
from effvl_cli.techniques.prompt_tune.linear_classifiers import UnitClassifier, random_weight, tip_adapter
from effvl_cli.techniques.prompt_tune.robust_losses import mean_absolute_error
from effvl_cli.techniques.prompt_tune.transport import split_loss, trusted_labels

TRIED = ("c", "top1_val", "converged")
"""Columns of what a sweep of penalties reports."""
MOST_SHOTS = 2**20  # of `--shots all`, for the validation images


def fit_arm(trial: Trial, arm: Arm) -> Fitted:
    """Train a method and apply it to the test images.

    Raises:
        UsageError: options that its method cannot work with.
        DataError: no validation images for linear-probe-sweep.
    """
    return FITS[arm.method](trial, arm)


def check_arms(context: Comparing) -> None:
    """Refuse what cannot be trained before any image is read.

    Raises:
        UsageError: class names that do not fit beside the learned tokens, or rn50-ft without --rn50-weights.
        ModelError: a text tower that takes no learned tokens.
        DataError: no validation images for linear-probe-sweep.
    """
    config = context.config
    if "linear-probe-sweep" in config.method:
        _validation_images(context)
    if any(method in LEARNERS and method != "tenc-ft" for method in config.method):
        num_tokens(context)
        assert context.tower
    if "rn50-ft" in config.method and config.rn50_weights is None:
        raise UsageError(
            f"rn50-ft fine-tunes {config.rn50_model}, and there is no --rn50-weights", "Give a file, or none"
        )


def zero_shot_head(context: Comparing) -> ClassHead:
    """The class features of the templates."""
    return ClassHead(context.classifier.cpu(), scale=context.scale)


def _zero_shot(trial: Trial, arm: Arm) -> Fitted:
    return trial.applied(arm, zero_shot_head(trial.context))


def _learner(trial: Trial, arm: Arm) -> Fitted:
    config = trial.context.config
    lr = config.tenc_lr if arm.method == "tenc-ft" else prompt_rate(trial.context)
    return _trained(trial, arm, learner_of(trial.context, arm.method), lr)


def _classifier(trial: Trial, arm: Arm) -> Fitted:
    context = trial.context
    weight = context.classifier
    if arm.method == "classifier-r":
        weight = random_weight(len(weight), weight.shape[1], seeds.generator(context.config.seed, "classifier"))
    module = UnitClassifier(weight).to(context.run.device)
    return _trained(trial, arm, module, context.config.classifier_lr)


def _trained(trial: Trial, arm: Arm, module: nn.Module, lr: float) -> Fitted:
    """Class features that are trained by SGD."""
    context, train, phase = trial.context, trial.training.of(trial.labels), trial.phase(arm)
    loss, trusted = loss_of(context, arm.loss), _trusted(trial)
    watch = None
    if context.config.grad_analysis and trial.labels.shots.clean is not None:
        of_all = loss if trusted is None else split_loss(loss, mean_absolute_error, trusted.to(context.run.device))
        watch = GradientWatch(trial, arm, of_all, steps_per_epoch(context, len(train)))
        watch.before(module)
    watched = watched_epochs if watch else None
    fitted = train_module(context, module, train, loss, lr, phase, watch=watch, watched=watched, trusted=trusted)
    with torch.no_grad():
        head = ClassHead(module().float().cpu(), scale=context.scale)
    about = {
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "lr": lr,
        "params": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    if trusted is not None:
        about["trusted"] = int(trusted.sum())
    return trial.applied(arm, head, _learned(module) if arm.method in LEARNERS else {}, about)


def _trusted(trial: Trial) -> Tensor | None:
    """(N,) which labels `--split` trusts; None: all."""
    if trial.context.config.split == "none":
        return None
    return trusted_labels(zero_shot_head(trial.context)(trial.centres), trial.labels.given)


def _learned(module: nn.Module) -> dict[str, Tensor]:
    """What was learned on the side of the text tower."""
    if isinstance(module, PromptLearner):
        return module.learned()
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def _linear_probe(trial: Trial, arm: Arm) -> Fitted:
    config = trial.context.config
    return _probed(trial, arm, lambda x, y, k: (linear_probe(x, y, k, config.probe_c), []))


def _linear_probe_sweep(trial: Trial, arm: Arm) -> Fitted:
    validation = _validation(trial)
    known = validation.first, validation.labels
    return _probed(trial, arm, lambda x, y, k: linear_probe_sweep(x, y, k, known))


def _probed(
    trial: Trial, arm: Arm, fit: Callable[[Tensor, Tensor, int], tuple[Probe, list[dict[str, float]]]]
) -> Fitted:
    """A probe, and beside it a row for each penalty that was tried on validation images."""
    context = trial.context

    def make() -> dict[str, Tensor]:
        probe, tried = fit(trial.centres, trial.labels.given, len(context.classes))
        found = {name: torch.as_tensor(value) for name, value in asdict(probe).items()}
        rows = [[row[name] for name in TRIED] for row in tried]
        return {**found, "tried": torch.tensor(rows, dtype=torch.float64).reshape(-1, len(TRIED))}

    found = Phases.of(context.run).tensors(trial.phase(arm), make)
    head = ClassHead(found["weight"], found["bias"], normalize=False)
    about: dict[str, Any] = {"c": float(found["c"]), "converged": bool(found["converged"])}
    if len(found["tried"]):
        about["tried"] = [dict(zip(TRIED, row, strict=True)) for row in found["tried"].tolist()]
    return trial.applied(arm, head, about=about)


def _validation(trial: Trial) -> Features:
    """A few validation images of each class."""
    context = trial.context
    return features_of(context.network, context.source("val"), _validation_images(context), context.config, context.run)


def _validation_images(context: Comparing) -> NDArray[np.int64]:
    """Positions of a few validation images of each class.

    Raises:
        DataError: there are none, or those of `--fewshot-file` are not among them.
    """
    config, source = context.config, context.source("val")
    if config.fewshot_file:
        return listed_shots(Path(config.fewshot_file), source, "val")
    return few_shot_validation(source, MOST_SHOTS if config.shots == "all" else config.shots, config.seed)


def _tip_adapter(trial: Trial, arm: Arm) -> Fitted:
    context, keys = trial.context, F.normalize(trial.centres, dim=1)
    zero_shot = zero_shot_head(context)

    def logits(features: Tensor) -> Tensor:
        config = context.config
        return tip_adapter(
            F.normalize(features, dim=1),
            zero_shot(features),
            keys,
            trial.labels.given,
            alpha=config.tip_alpha,
            beta=config.tip_beta,
        )

    return Fitted(arm, logits(trial.test.first), logits(trial.centres))


FITS: dict[str, Callable[[Trial, Arm], Fitted]] = {
    "zero-shot": _zero_shot,
    "linear-probe": _linear_probe,
    "linear-probe-sweep": _linear_probe_sweep,
    "classifier-r": _classifier,
    "classifier-c": _classifier,
    "tip-adapter": _tip_adapter,
    "rn50-ft": finetune_backbone,
    **dict.fromkeys(LEARNERS, _learner),
}
