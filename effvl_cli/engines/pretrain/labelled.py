"""Training with texts or labels, measured once on the test split."""

import importlib

import torch

from effvl_cli.config.methods import METHODS
from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.core import loop, seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.core.measure import count_macs
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data import load
from effvl_cli.data.prompts import choose_templates
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.transforms import augment
from effvl_cli.engines.common.batches import check_divides, loaded
from effvl_cli.engines.common.plans import optimizers_of, plan_of
from effvl_cli.engines.pretrain.objective import Objective
from effvl_cli.models import network as networks
from effvl_cli.models.edits import reported

MAX_VALIDATION = 2000  # validation images during training


def run(config: PretrainConfig, run: Run) -> None:
    """Train, evaluate, save."""
    objective = open_objective(config, run)
    network = objective.network
    fitted = _fit(objective)
    run.report.model(network.name, network.source, network.module)
    run.report.edits(reported(network.edits))
    run.report.data(objective.source)
    run.report.technique.update(method=config.method, steps=fitted.steps, best_step=fitted.best_step)
    image = torch.zeros(1, 3, *network.preprocess.size, device=run.device)
    run.report.efficiency["macs_per_image"] = count_macs(network.image_module, image)
    if fitted.steps > fitted.resumed_at:
        images = (fitted.steps - fitted.resumed_at) * config.batch_size
        run.report.efficiency["images_per_s"] = images / fitted.seconds
    objective.test()
    _save(objective)


def open_objective(config: PretrainConfig, run: Run) -> Objective:
    """Data and network of the method, on the device."""
    module, _, name = METHODS[config.method].target.partition(":")
    kind: type[Objective] = getattr(importlib.import_module(module), name)
    source = load(config.data, "train", root=config.data_root, seed=config.seed)
    network = networks.load(
        config.model,
        config.weights or "none",
        default=kind.default_model,
        kind=kind.kind,
        seed=config.seed,
        classes=source.classes,
        options=config,
        log=run.log,
        warn=run.warn,
    )
    network.module.to(run.device)
    return kind(config, run, source, network, choose_templates(config.templates, source.templates))


def _fit(objective: Objective) -> loop.FitResult:
    config, run, source, network = objective.config, objective.run, objective.source, objective.network
    held_out = objective.open("val")
    count = min(len(held_out), MAX_VALIDATION)
    order = torch.randperm(len(held_out), generator=seeds.generator(0, "validation"))[:count].sort().values
    task = objective.task(objective.decode(held_out, order.numpy()))
    steps, steps_per_epoch, sampler = length(objective)
    transform = augment(config.augment, network.preprocess)
    batches = loaded(source, sampler, config, run, seed=config.seed, transform=transform)
    plan = plan_of(
        config,
        steps,
        precision=config.precision,
        eval_every=config.eval_every or (steps_per_epoch if config.epochs else 0),
    )
    optimizers = optimizers_of(config, network.module)
    return Phases.of(run).train("train", network.module, lambda: loop.fit(task, optimizers, batches, run, plan))


def length(objective: Objective) -> tuple[int, int, EpochSampler]:
    """Optimizer steps in all and per epoch, and the order of the samples.

    Raises:
        UsageError: epochs of endless data, or a batch that cannot be shared equally.
    """
    config, source = objective.config, objective.source
    if config.steps is None and source.endless:
        raise UsageError(f"--epochs with endless data ({config.data})", "Give --steps")
    check_divides(config.batch_size, "--batch-size", accumulate=config.accumulate)
    sampler = EpochSampler(len(source), config.batch_size // config.accumulate, config.seed)
    steps_per_epoch = max(1, sampler.steps_per_epoch // config.accumulate)
    return config.steps or int(config.epochs or 0) * steps_per_epoch, steps_per_epoch, sampler


def _save(objective: Objective) -> None:
    config, run, network = objective.config, objective.run, objective.network
    manifest = {
        **network.describe(),
        "classes": list(objective.source.classes),
        "templates": list(objective.templates),
        "data": config.data,
        "method": config.method,
    }
    run.save_model(network.module.state_dict(), manifest)
