"""What a pretraining will do and cost, for `--dry-run`: of the data only the labels are opened."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from effvl_cli.config.methods import METHODS, VIEW_METHODS
from effvl_cli.config.pretrain import EvalConfig, PretrainConfig, SearchConfig
from effvl_cli.core import distributed
from effvl_cli.core.devices import resolve_device
from effvl_cli.core.errors import DataError
from effvl_cli.core.loop import autocast
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.core.modes import as_found
from effvl_cli.core.probe import seconds_for
from effvl_cli.core.run import unopened
from effvl_cli.core.table import Cell, Table, times
from effvl_cli.data.loader import noise_batch
from effvl_cli.engines.common.cost_table import TRAINING, Part, cost_table, part, speed_of, training_memory
from effvl_cli.engines.pretrain import labelled
from effvl_cli.engines.pretrain.compressions import gradient_units, with_batches
from effvl_cli.engines.pretrain.costs import DEFAULT_BUDGET, budget_of, clock_of
from effvl_cli.engines.pretrain.images import open_split
from effvl_cli.engines.pretrain.methods import build_parts, check_batch
from effvl_cli.engines.pretrain.probes import MAX_VALIDATION
from effvl_cli.engines.pretrain.schedules import build_schedule, pilot_schedule
from effvl_cli.engines.pretrain.trials import most_units
from effvl_cli.models.network import Network
from effvl_cli.techniques.pretrain.schedule import Clock, Compression, Schedule

EVALUATIONS = 2  # of the features during the training of an arm
SMALLEST = 2  # samples that a probe of a step takes


def preview(config: PretrainConfig) -> list[Table]:
    """Stages and costs of a training by any method."""
    return _of_views(config) if config.method in VIEW_METHODS else [_of_labels(config)]


# --- methods that compare views --------------------------------------------------------------------------------------


class Trainee:
    """A method on the device, and the steps of its training."""

    def __init__(self, config: PretrainConfig | SearchConfig, num_images: int) -> None:
        check_batch(config)
        self.config, self.device = config, resolve_device(config.device)
        self.network, self.costs, self.maker = build_parts(config, num_images, self.device)
        self.method = self.costs.method

    def clock(self, schedule: Schedule, budget: float) -> Clock:
        """Steps of a schedule."""
        return clock_of(self.config, self.costs, schedule, budget)

    def step(self, compression: Compression) -> Callable[[int], None]:
        """Loss and gradient of a number of noise images, augmentation included."""

        def run(count: int) -> None:
            with as_found(self.method, training=True):
                self.loss(compression, max(SMALLEST, count)).backward()
            self.method.zero_grad(set_to_none=True)

        return run

    def loss(self, compression: Compression, count: int) -> torch.Tensor:
        """Of noise images."""
        views = self.maker.views(noise_batch(self.network.preprocess.size, count, self.device), compression, 0)
        with autocast(self.device, self.config.precision):
            return self.method.loss(views, distributed.gather_with_gradient, 0.5).loss

    def seconds(self, compression: Compression) -> float:
        """Seconds of a step on this process's share."""
        share = self.config.batch_size // distributed.world().size
        return seconds_for(self.step(compression), share, self.device)

    def memory(self, compression: Compression) -> int:
        """Weights, gradients, moments, and what the backward pass of a share needs."""
        share = self.config.batch_size // distributed.world().size
        return training_memory(self.method, self.config.optimizer, partial(self.loss, compression), share)


def _of_views(config: PretrainConfig) -> list[Table]:
    count = len(open_split(config, "train")) if config.units is None and config.epochs else 1
    trainee = Trainee(config, count)
    schedule, source = build_schedule(config, trainee.costs.shape)
    budget = budget_of(config, trainee.costs, count)
    arms = {"train": trainee.clock(schedule, budget)}
    if config.compares:
        whole = Schedule.constant(Compression(trainee.costs.shape.patch))
        arms = {"baseline": trainee.clock(whole, budget), "accelerated": arms["train"]}
    kinds = dict.fromkeys(stage.compression for clock in arms.values() for stage in clock.stages)
    seconds = {kind: trainee.seconds(kind) for kind in kinds}
    parts = [
        Part(
            arm,
            f"{clock.steps} steps of {config.batch_size} images",
            clock.units * trainee.costs.unit_macs,
            sum(stage.steps * seconds[stage.compression] for stage in clock.stages),
        )
        for arm, clock in arms.items()
    ]
    images = _judged(config, len(arms))
    if images:
        parts.append(_forward(trainee, images, config.eval_batch_size))
    clock = list(arms.values())[-1]
    title = f"{config.method} on {trainee.network.name}, schedule: {source}"
    memory = max(trainee.memory(kind) for kind in kinds)
    heads = METHODS[config.method].arguments(config, trainee.costs.shape.width, count)
    notes = (
        f"{clock.units:,.0f} units of {trainee.costs.unit_macs:,} multiply-adds per arm, without heads",
        f"heads of {config.method}: " + ", ".join(f"{name} {value}" for name, value in heads.items()),
    )
    return [_stages(title, trainee, clock), cost_table("cost", parts, trainee.device, memory=memory, notes=notes)]


def _judged(config: PretrainConfig, arms: int) -> int:
    """Images whose features are computed: bank and validation during training, bank and test at the end."""
    try:
        bank = min(config.num_bank, len(open_split(config, "train")))
        validation = min(MAX_VALIDATION, len(open_split(config, "val")))
        return EVALUATIONS * arms * (bank + validation) + (arms + 1) * (bank + len(open_split(config, "test")))
    except DataError:
        return 0


def _forward(trainee: Trainee, images: int, size: int) -> Part:
    pictures = noise_batch(trainee.network.preprocess.size, size, trainee.device).images
    speed = speed_of(
        lambda few: trainee.method.result(trainee.network.preprocess.normalise(few)),
        trainee.method.result,
        pictures,
        trainee.costs.unit_macs,
        trainee.config.precision,
    )
    macs = images * trainee.costs.unit_macs
    return part("features", f"{images:,} images, without k-NN and linear probe", macs, speed)


def _stages(title: str, trainee: Trainee, clock: Clock) -> Table:
    rows: list[tuple[Cell, ...]] = []
    costs = trainee.costs
    for stage in clock.stages:
        row, end = costs.stage(stage, trainee.config.batch_size), f"{clock.t(stage.first + stage.steps):.3f}"
        each = row["units_per_sample"]
        sizes = (row["patch"], row["tokens_q"], row["tokens_k"], row["steps"])
        rows.append((end, *sizes, f"{each:.3f}", times(costs.full / each)))
    notes = tuple(f"stage {index} is shorter than one step and never occurs" for index in clock.skipped)
    columns = ("until", "patch", "tokens q", "tokens k", "steps", "units/image", "speed-up")
    return Table(title, columns, tuple(rows), notes)


def search_parts(trainee: Trainee, config: SearchConfig, candidates: Mapping[str, Compression]) -> list[Part]:
    """Costs of a pilot or of the training along which is measured, of the gradients, and of trials ahead.

    Args:
        trainee: method on the device.
        config: options.
        candidates: compressions to compare, by name.
    """
    costs = trainee.costs
    seconds = trainee.seconds(Compression(costs.shape.patch)) / config.batch_size / costs.full  # of a unit
    budget = config.units or DEFAULT_BUDGET
    config = with_batches(config, costs, candidates, budget)
    loop, share = config.closed_loop, config.pilot_share

    def part_of(name: str, work: str, units: float) -> Part:
        return Part(name, work, units * costs.unit_macs, units * seconds)

    parts = []
    if loop:
        parts.append(part_of("training", f"{budget:,.0f} units, kept as the run's model", budget))
    elif share:
        clock = trainee.clock(pilot_schedule(config, costs, candidates, share * budget), share * budget)
        parts.append(part_of("pilot", f"{clock.steps} steps of {config.batch_size} images", clock.units))
    stages = config.loop_shares if loop else config.measure_at
    batch, num_batches = config.grad_batch_size or config.batch_size, config.batches * config.average
    units = config.batches * gradient_units(config, costs, candidates)
    most = ", at most" if config.early_stop else ""
    work = f"{len(candidates)} candidates x {num_batches} batches of {batch} at {len(stages)} stages{most}"
    parts.append(part_of("gradients", work, units))
    if config.lookahead:
        asked = sum(0 < t < 1 - config.final_full for t in stages)
        units = most_units(config, budget, asked, config.num_bank + MAX_VALIDATION)
        work = f"{config.lookahead} compressions at {asked} stages, and 20-NN, at most"
        parts.append(part_of("look-ahead", work, units))
    return parts


def features_table(network: Network, config: EvalConfig) -> Table:
    """Cost of evaluating features: bank, test split, and the SGD probe if requested."""
    device, module = resolve_device(config.device), network.image_module
    train, test = open_split(config, "train"), open_split(config, "test")
    images = noise_batch(network.preprocess.size, config.eval_batch_size, device).images
    macs = count_macs(module, network.preprocess.normalise(images[:1]))
    speed = speed_of(lambda few: module(network.preprocess.normalise(few)), module, images, macs, config.precision)
    count = min(config.num_bank, len(train)) + len(test)
    parts = [part("features", f"{count:,} images, without k-NN and linear probe", count * macs, speed)]
    if config.save_features:
        seen = len(open_split(config, config.feature_split))
        parts.append(part("saved features", f"{seen:,} images", seen * macs, speed))
    if config.sgd_epochs:
        seen = config.sgd_epochs * len(train)
        parts.append(part("SGD probe", f"{config.sgd_epochs} epochs of {len(train):,} images", seen * macs, speed))
    memory = 4 * count_parameters(module)
    return cost_table(f"features of {network.name} on {config.data}", parts, device, memory=memory, notes=())


# --- texts and labels ------------------------------------------------------------------------------------------------


def _of_labels(config: PretrainConfig) -> Table:
    run = unopened("pretrain", config)
    objective = labelled.open_objective(config, run)
    network, device = objective.network, run.device
    steps, _, _ = labelled.length(objective)
    size = config.batch_size // config.accumulate // distributed.world().size
    image = torch.zeros(1, 3, *network.preprocess.size, device=device)
    macs = count_macs(network.image_module, image)
    task = objective.probe()

    def loss(count: int) -> torch.Tensor:
        with autocast(device, config.precision):
            return task.train_step(noise_batch(network.preprocess.size, count, device), 0).loss

    def step(count: int) -> None:
        with as_found(task.module, training=True):
            loss(count).backward()
        network.module.zero_grad(set_to_none=True)

    images = steps * config.batch_size
    seconds = steps * config.accumulate * seconds_for(step, size, device)
    parts = [Part("train", f"{steps} steps of {config.batch_size} images", TRAINING * images * macs, seconds)]
    test = len(objective.open("test"))
    each = seconds / images / TRAINING
    parts.append(Part("evaluate", f"{test:,} test images", test * macs, test * each))
    memory = training_memory(task.module, config.optimizer, loss, size)
    title = f"{config.method}: {network.name} on {config.data}"
    notes = () if network.image_module is network.module else ("multiply-adds of the image network alone",)
    return cost_table(title, parts, device, memory=memory, notes=notes)
