"""What follows a removal, in the loop and in `apply`: new statistics, fine-tuning, figures."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from effvl_cli.config.options import RunOptions
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.core.phases import Phases
from effvl_cli.engines.prune_blocks import training
from effvl_cli.engines.prune_blocks.context import NetworkContext, Tuning
from effvl_cli.engines.prune_blocks.training import Recipe
from effvl_cli.models.pruned_network import State
from effvl_cli.techniques.prune_blocks.recalibrate import recalibrate
from effvl_cli.techniques.prune_blocks.step_row import StepRow
from effvl_cli.techniques.prune_blocks.targets import Size


def size_of(context: NetworkContext[RunOptions], module: nn.Module) -> Size:
    """Parameters, and multiply-adds of one image."""
    return Size(count_parameters(module), count_macs(module, context.noise(1)))


def figures(context: Tuning, module: nn.Module) -> dict[str, dict[str, float]]:
    """Accuracy on the scoring images and on the test images."""
    return {"score": context.accuracy(module, context.scoring), "test": context.accuracy(module, context.test)}


def original_figures(context: Tuning, phases: Phases) -> dict[str, dict[str, float]]:
    """`figures` of the network that a job or verb starts with.

    Raises:
        ModelError: it is hardly better than chance.
    """
    found: dict[str, dict[str, float]] = phases.once("baseline", lambda: figures(context, context.module))
    context.refuse_chance(found["score"]["top1"])
    return found


def settle(
    context: Tuning,
    phases: Phases,
    pruned: State,
    *,
    k: int,
    count: int,
    original: Size,
    tuned: Mapping[str, torch.Tensor] | None = None,
) -> StepRow:
    """Re-estimate statistics, fine-tune in place and measure, in one step.

    Args:
        context: data and options.
        phases: results of earlier attempts.
        pruned: the network; its last `count` removals are this step's.
        k: number of the step in this run.
        count: of its removals.
        original: size of the network that the run started with.
        tuned: weights of the same network after some training, to continue from.

    Returns:
        The step's row of the report, without what chose the units.
    """
    config = context.config
    before = phases.once(f"step {k} before", lambda: figures(context, pruned.module))
    recalibrated = _recalibrate(context, phases, pruned.module, k)
    if tuned is not None:
        pruned.module.load_state_dict(tuned)
    recipe = Recipe(config.finetune_epochs, config.finetune_lr, config.finetune_batch_size, steps=config.finetune_steps)
    trained = finetune(context, phases, pruned.module, f"step-{k}", recipe)
    after = phases.once(f"step {k} after", lambda: figures(context, pruned.module))
    size = size_of(context, pruned.module)
    row = StepRow(
        k=k,
        removed=pruned.removals[-count:],
        top1_score_before_ft=before["score"]["top1"],
        top1_score_after_bn_recal=recalibrated,
        top1_score_after_ft=after["score"]["top1"],
        top1_test_before_ft=before["test"]["top1"],
        top1_test_after_ft=after["test"]["top1"],
        params=size.params,
        macs=size.macs,
        flops=2 * size.macs,
        params_removed=1 - size.params / original.params,
        macs_removed=1 - size.macs / original.macs,
        ft=trained,
        treatment="fine-tuned" if trained or tuned is not None else "recalibrated" if config.bn_recal else "",
        checkpoint=f"checkpoints/step-{k}" if trained else None,
    )
    phases.once(
        f"step {k} recorded", lambda: context.run.record("step", k=k, removed=row.names, before=before, after=after)
    )
    return row


def finetune(context: Tuning, phases: Phases, module: nn.Module, phase: str, recipe: Recipe) -> dict[str, Any] | None:
    """Train in place; None where no training is requested."""
    if not (recipe.steps or recipe.epochs):
        return None
    teacher = teacher_of(context)
    fitted = phases.train(phase, module, lambda: training.train(context, module, recipe, phase, teacher=teacher))
    module.requires_grad_(False)
    length = {"steps": recipe.steps} if recipe.steps else {"epochs": recipe.epochs}
    return {**length, "lr": recipe.lr, "seconds": fitted.seconds}


def teacher_of(context: Tuning) -> nn.Module | None:
    """The original network, where fine-tuning uses it."""
    return context.module if training.needs_teacher(context.config) else None


def _recalibrate(context: Tuning, phases: Phases, module: nn.Module, k: int) -> float | None:
    """Re-estimate batch-norm statistics; return top-1 on the scoring images afterwards."""
    if not context.config.bn_recal:
        return None
    recalibrate(module, context.recalibration)
    return float(phases.once(f"step {k} recal", lambda: context.accuracy(module, context.scoring)["top1"]))
