"""Fine-tuning of a whole image classifier: the ImageNet ResNet-50 of arXiv 2307.11978, fig. 1."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from effvl_cli.core import loop, optim
from effvl_cli.core.phases import Phases
from effvl_cli.data.loader import Batch
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import Subset
from effvl_cli.data.transforms import augment
from effvl_cli.engines.common.batches import Stream, check_divides, decode, loaded
from effvl_cli.engines.common.classifier import ClassifierTask, logits_of
from effvl_cli.engines.prompt_tune.arms import Arm, Fitted, Trial
from effvl_cli.engines.prompt_tune.context import num_epochs
from effvl_cli.engines.prompt_tune.features import AUGMENT
from effvl_cli.engines.prompt_tune.head_training import loss_of, rate_of
from effvl_cli.models import network as networks


def finetune_backbone(trial: Trial, arm: Arm) -> Fitted:
    """Train a network with a new head on the same images and labels; it reads no class names."""
    context, config = trial.context, trial.context.config
    network = networks.load(
        config.rn50_model,
        config.rn50_weights,
        default="",
        kind="classifier",
        seed=config.seed,
        num_classes=len(context.classes),
        download=config.download,
        new_head=config.rn50_weights != "none",
        log=context.run.log,
    )
    module = network.module.to(context.run.device)
    phase = trial.phase(arm)
    fitted = Phases.of(context.run).train(phase, module, lambda: _fit(trial, arm, network, phase))
    test, train = (_logits(trial, network, split) for split in ("test", "train"))
    return Fitted(arm, test, train, about={"steps": fitted.steps, "seconds": fitted.seconds, "lr": config.rn50_lr})


def _fit(trial: Trial, arm: Arm, network: networks.Network, phase: str) -> loop.FitResult:
    context, config, epochs = trial.context, trial.context.config, num_epochs(trial.context)
    count = len(trial.labels.given)
    size = min(config.batch_size, count)
    check_divides(size, "--batch-size")
    sampler = EpochSampler(count, size, config.seed)
    per_epoch = sampler.steps_per_epoch
    plan = loop.Plan(
        steps=epochs * per_epoch,
        rate=lambda step: rate_of(step // per_epoch, epochs, config.rn50_lr, config.warmup_lr) / config.rn50_lr,
        phase=phase,
        precision=config.precision,
        save_every=config.save_every,
        log_every=config.log_every,
    )
    module: nn.Module = network.module
    optimizers = optim.build(
        module,
        "sgd",
        lr=config.rn50_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        decays=optim.everything,
    )
    of_sample = loss_of(context, arm.loss)

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return of_sample(logits.float(), labels).mean()

    task = ClassifierTask(module, network.preprocess, context.run, loss=loss, validate=lambda found: {})
    return loop.fit(task, optimizers, _batches(trial, network, sampler), context.run, plan)


def _batches(trial: Trial, network: networks.Network, sampler: EpochSampler) -> Stream[Batch]:
    """New random crops each epoch, with the given labels."""
    context = trial.context
    source = Subset(trial.training.source, trial.labels.shots.indices)
    transform = augment(AUGMENT, network.preprocess)
    images = loaded(source, sampler, context.config, context.run, seed=context.config.seed, transform=transform)

    def stream(start: int) -> Iterator[Batch]:
        for batch in images(start):
            yield dataclasses.replace(batch, labels=trial.labels.given[batch.indices])

    return stream


def _logits(trial: Trial, network: networks.Network, split: str) -> Tensor:
    """Of the middle of the training images, or of the test images."""
    context = trial.context
    is_train = split == "train"
    source = trial.training.source if is_train else context.source("test")
    indices = trial.labels.shots.indices if is_train else np.asarray(trial.test.indices)
    images = decode(source, network.preprocess, indices, context.config, context.run, on_bad="error", noted=False)
    precision = context.config.precision
    return logits_of(
        network.module, images, context.run, batch_size=context.config.eval_batch_size, precision=precision
    )
