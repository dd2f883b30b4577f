"""Training of the original network and fine-tuning of pruned ones."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.core import distributed, loop, optim
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.data.loader import Batch, loader_workers, train_batches
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.transforms import augment
from effvl_cli.engines.prune_blocks.context import Context
from effvl_cli.techniques.prune_blocks.distill import PooledFeatures, distillation_loss, mimic_loss
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


class ClassifierTask(Task):
    """Cross entropy, and the distance to a teacher where there is one."""

    def __init__(self, context: Context, module: nn.Module, teacher: nn.Module | None) -> None:
        self.here, self.module, self.teacher = context, module, teacher
        networks = (module, teacher) if teacher is not None and context.config.mimic else ()
        self.features = [PooledFeatures(network) for network in networks]

    def train_step(self, batch: Batch, step: int) -> StepOutput:
        """Mean loss of one process's images."""
        batch = batch.to(self.here.run.device)
        images = self.here.network.preprocess.normalise(batch.images)
        logits = self.module(images)
        logs = {"top1_train": (logits.detach().argmax(1) == batch.labels).float().mean()}
        return StepOutput(self._loss(images, logits, batch.labels), logs)

    def _loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        config = self.here.config
        if self.teacher is None:
            return F.cross_entropy(logits, labels)
        with torch.no_grad():
            taught = self.teacher(images)
        if config.kd:
            loss = distillation_loss(logits, taught, labels, alpha=config.kd_alpha, temperature=config.kd_temperature)
        else:
            loss = F.cross_entropy(logits, labels)
        if self.features:
            ours, theirs = (features.last for features in self.features)
            loss = loss + config.mimic * mimic_loss(ours, theirs)
        return loss

    def evaluate(self) -> dict[str, float]:
        """Accuracy on the images that score; batch-norm statistics are those of the first process from here on."""
        distributed.share_buffers(self.module)
        found = self.here.accuracy(self.module, self.here.scoring)
        return {f"{name}_score": value for name, value in found.items()}


def train(
    context: Context, module: nn.Module, recipe: Recipe, phase: str, *, teacher: nn.Module | None = None
) -> loop.FitResult:
    """Train `module` in place; a phase that an earlier attempt began or finished goes on from there."""
    config = context.config
    sampler = EpochSampler(len(context.train), _divisible(recipe.batch_size), config.seed)
    steps = recipe.steps or recipe.epochs * sampler.steps_per_epoch
    warmup = math.ceil(recipe.warmup * steps)
    select = getattr(config, "select", "last") == "best" and recipe.warmup == 0
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
        decay_all=config.decay_all,
    )
    task = ClassifierTask(context, module, teacher)
    with contextlib.ExitStack() as hooks:
        for features in task.features:
            hooks.enter_context(features)
        fitted = loop.fit(task, optimizers, lambda start: _batches(context, sampler, start), context.run, plan)
    module.eval().requires_grad_(False)
    return fitted


def check(context: Context, *, baseline: bool) -> None:
    """Refuse what training could not do, before anything is scored.

    Args:
        here: data and options.
        baseline: whether the original network is trained too.

    Raises:
        UsageError: a batch larger than the data, or --bn-recal of more images than there are.
        ModelError: --bn-recal without batch norm.
    """
    config, count = context.config, len(context.train)
    trains = config.finetune_epochs or config.finetune_steps or config.final_epochs or getattr(config, "lookahead", "")
    for name, used in (("finetune_batch_size", trains), ("baseline_batch_size", baseline)):
        if used and getattr(config, name) > count:
            raise UsageError(
                f"--{name.replace('_', '-')} is {getattr(config, name)}, and there are {count} training images",
                f"Give 1 to {count}",
            )
        if used:
            _divisible(getattr(config, name))
    if config.bn_recal:
        images = context.recalibration[0][:2]
        try:
            recalibrate(copy.deepcopy(context.module), [images])
        except ValueError as error:
            raise ModelError(f"--bn-recal: {error}", "Leave it out") from error


def _divisible(batch_size: int) -> int:
    size = distributed.world().size
    if batch_size % size:
        raise UsageError(
            f"a batch of {batch_size} images does not divide among {size} processes",
            f"Give --baseline-batch-size and --finetune-batch-size as multiples of {size}",
        )
    return batch_size


def _batches(context: Context, sampler: EpochSampler, start: int) -> Iterator[Any]:
    config, world = context.config, distributed.world()
    return train_batches(
        context.train,
        augment(config.augment, context.network.preprocess),
        sampler,
        seed=config.seed,
        start_step=start,
        rank=world.rank,
        world=world.size,
        workers=loader_workers(config.workers, context.run.device.type),
        on_bad=config.on_bad,
    )


def needs_teacher(config: Any) -> bool:
    """Whether fine-tuning looks at the original network."""
    return bool(config.kd or config.mimic)
