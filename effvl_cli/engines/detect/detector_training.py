"""Trains a detector."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from effvl_cli.config.detect_train import TrainingOptions
from effvl_cli.core import distributed, loop
from effvl_cli.core.errors import UsageError
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.box_batches import Pictures
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.common.plans import optimizers_of, plan_of
from effvl_cli.engines.detect.box_splits import Splits, TrainingBatches, batches_for
from effvl_cli.engines.detect.detecting import detect, shrink_of
from effvl_cli.engines.detect.detection_figures import measure
from effvl_cli.engines.detect.detection_task import DetectionTask, Trainee
from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.models.network import Network

VALIDATION = "ap_val"  # the figure that chooses the best step
LONGEST_RISE = 0.5  # share of a training over which the rate may rise


def train(config: TrainingOptions, run: Run, splits: Splits, network: Network, phase: str) -> dict[str, Any]:
    """Train a detector in place; a phase that an earlier attempt began or finished continues from there.

    Args:
        config: options.
        run: folder, device, records.
        splits: images.
        network: what is trained.
        phase: name, unique in the run.

    Returns:
        What the report says of the training.

    Raises:
        UsageError: batches that processes cannot share.
        NumericalError: losses that stay non-finite.
    """
    trainee = Trainee(_placed(config, run, network), config.ema)
    batches = batches_for(config, splits.train, network.module.spec, run)
    task = DetectionTask(trainee, run, _validation(config, run, splits.val))
    plan = _plan(config, batches, phase, chosen=config.select == "best")
    phases = Phases.of(run)
    fitted = phases.train(
        phase,
        trainee,
        lambda: loop.fit(
            task, optimizers_of(config, trainee), lambda k: task.meter.timed(batches.stream(k)), run, plan
        ),
    )
    about: dict[str, Any] = phases.once(f"{phase} figures", lambda: _about(config, task, fitted, batches))
    network.module = trainee.result
    return about


def check_sync_bn(config: TrainingOptions, device: torch.device) -> None:
    """Refuse --sync-bn where torch cannot do it.

    Raises:
        UsageError: several processes on a CPU.
    """
    if config.sync_bn and distributed.world().size > 1 and device.type != "cuda":
        raise UsageError(
            f"--sync-bn works on GPUs, and the device is {device.type}",
            "Leave it out, or give --norm group, which depends on no other image",
        )


def _placed(config: TrainingOptions, run: Run, network: Network) -> CascadeRCNN:
    """The detector on its device, with --sync-bn its batch norm over all processes."""
    module: CascadeRCNN = network.module.to(run.device)
    if not config.sync_bn or distributed.world().size == 1:
        return module
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert isinstance(synchronised, CascadeRCNN)
    return synchronised


def length_of(config: TrainingOptions, steps_per_epoch: int) -> int:
    """Steps of a training."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return config.epochs * steps_per_epoch


def period_of(config: TrainingOptions, steps_per_epoch: int) -> int:
    """Steps from one evaluation to the next."""
    return config.eval_every or config.usual_period * steps_per_epoch


def _plan(config: TrainingOptions, batches: TrainingBatches, phase: str, *, chosen: bool) -> loop.Plan:
    """The plan of the options; `chosen`: whether validation images choose the best step."""
    steps = length_of(config, batches.steps_per_epoch)
    assert config.warmup is not None
    rise = config.warmup if config.warmup < 1 else min(LONGEST_RISE, config.warmup / steps)
    return plan_of(
        dataclasses.replace(config, warmup=rise),
        steps,
        phase=phase,
        precision=config.precision,
        best=VALIDATION if chosen else None,
        eval_every=period_of(config, batches.steps_per_epoch),
    )


def _validation(
    config: TrainingOptions, run: Run, source: BoxSource | None
) -> Callable[[CascadeRCNN], dict[str, float]]:
    """AP, AP50 and AP75 of a detector on validation images; nothing where there are none."""
    if source is None:
        return lambda module: {}
    held: list[Pictures] = []

    def validate(module: CascadeRCNN) -> dict[str, float]:
        if not held:
            held.append(Pictures(source, shrink_of(module.spec)))
        found = detect(module, held[0], config, run)
        numbers = measure(source, found.detections, found.seen, by=()).evaluation.whole.numbers
        return {f"{name}_val": numbers[name] or 0.0 for name in ("ap", "ap50", "ap75")}

    return validate


def _about(
    config: TrainingOptions, task: DetectionTask, fitted: loop.FitResult, batches: TrainingBatches
) -> dict[str, Any]:
    """What the report says of a training; times are those of the attempt that finished it."""
    assert config.batch_size is not None
    return {
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "steps_per_epoch": batches.steps_per_epoch,
        "validation": fitted.figures,
        **task.meter.row(0, config.batch_size),
    }
