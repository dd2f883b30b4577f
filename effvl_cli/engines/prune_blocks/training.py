"""Training of the original network and fine-tuning of pruned ones."""

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from effvl_cli.config.prune_blocks import ApplyConfig, PruneBlocksConfig
from effvl_cli.core import distributed, loop, optim
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.transforms import augment
from effvl_cli.engines.common.batches import check_divides, loaded
from effvl_cli.engines.common.classifier import ClassifierTask, Loss, cross_entropy
from effvl_cli.engines.prune_blocks.context import Tuning
from effvl_cli.techniques.prune_blocks.distill import PooledFeatures, taught_loss
from effvl_cli.techniques.prune_blocks.recalibrate import recalibrate

WARMUP = 0.1  # share of the training of an original network


@dataclass(frozen=True)
class Recipe:
    """How long and how fast; `steps` replace the epochs."""

    epochs: int
    lr: float
    batch_size: int
    warmup: float = 0.0
    steps: int | None = None


def _loss(context: Tuning, teacher: nn.Module | None, features: Sequence[PooledFeatures]) -> Loss:
    """Cross entropy, and the distance to a teacher where there is one."""
    config = context.config
    if teacher is None:
        return cross_entropy()
    alpha = config.kd_alpha if config.kd else None
    return partial(
        taught_loss, teacher, features=features, alpha=alpha, temperature=config.kd_temperature, mimic=config.mimic
    )


def _validate(context: Tuning, module: nn.Module) -> dict[str, float]:
    """Accuracy on the scoring images; from here on all processes have the first one's batch-norm statistics."""
    distributed.share_buffers(module)
    found = context.accuracy(module, context.scoring)
    return {f"{name}_score": value for name, value in found.items()}


def train(
    context: Tuning, module: nn.Module, recipe: Recipe, phase: str, *, teacher: nn.Module | None = None
) -> loop.FitResult:
    """Train `module` in place; a phase that an earlier attempt began or finished continues from there."""
    config = context.config
    sampler = EpochSampler(len(context.train), recipe.batch_size, config.seed)
    steps = recipe.steps or recipe.epochs * sampler.steps_per_epoch
    warmup = math.ceil(recipe.warmup * steps)
    select = config.select == "best" and recipe.warmup == 0
    plan = loop.Plan(
        steps=steps,
        phase=phase,
        rate=lambda step: optim.cosine(step, steps, warmup=warmup),
        precision=config.precision,
        eval_every=sampler.steps_per_epoch if select else 0,
        save_every=config.save_every,
        log_every=config.log_every,
        best="top1_score" if select else None,
    )
    module.requires_grad_(True)
    optimizers = optim.build(
        module,
        "sgd",
        lr=recipe.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        decays=optim.everything if config.decay_all else optim.matrices,
    )
    preprocess = context.network.preprocess
    features = [PooledFeatures(module), PooledFeatures(teacher)] if config.mimic and teacher is not None else []
    loss = _loss(context, teacher, features)
    task = ClassifierTask(module, preprocess, context.run, loss=loss, validate=partial(_validate, context))
    transform = augment(config.augment, preprocess)
    batches = loaded(context.train, sampler, config, context.run, seed=config.seed, transform=transform)
    with contextlib.ExitStack() as hooks:
        for part in features:
            hooks.enter_context(part)
        fitted = loop.fit(task, optimizers, batches, context.run, plan)
    module.eval().requires_grad_(False)
    return fitted


def check(context: Tuning, *, baseline: bool) -> None:
    """Refuse impossible trainings before anything is scored.

    Args:
        context: data and options.
        baseline: whether the original network is trained too.

    Raises:
        UsageError: a batch larger than the data, or --bn-recal of more images than there are.
        ModelError: --bn-recal without batch norm.
    """
    config, count = context.config, len(context.train)
    lookahead = isinstance(config, PruneBlocksConfig) and config.lookahead
    trains = config.finetune_epochs or config.finetune_steps or config.final_epochs or lookahead
    sizes = {"--finetune-batch-size": config.finetune_batch_size} if trains else {}
    if baseline and isinstance(config, PruneBlocksConfig):
        sizes["--baseline-batch-size"] = config.baseline_batch_size
    for option, size in sizes.items():
        if size > count:
            raise UsageError(f"{option} is {size}, and there are {count} training images", f"Give 1 to {count}")
        check_divides(size, option)
    if config.bn_recal:
        images = context.recalibration[0][:2]
        try:
            recalibrate(copy.deepcopy(context.module), [images])
        except ValueError as error:
            raise ModelError(f"--bn-recal: {error}", "Leave it out") from error


def needs_teacher(config: PruneBlocksConfig | ApplyConfig) -> bool:
    """Whether fine-tuning uses the original network."""
    return bool(config.kd or config.mimic)
