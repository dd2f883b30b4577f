"""Trains one arm: a method under a schedule, at a budget."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from effvl_cli.config.methods import METHODS
from effvl_cli.config.pretrain import KEPT_AT, PretrainConfig, SearchConfig
from effvl_cli.core import bench, distributed, loop
from effvl_cli.core.compiling import compile_backbone
from effvl_cli.core.files import write_json
from effvl_cli.core.modes import as_found
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.loader import Batch
from effvl_cli.data.view_maker import ViewMaker
from effvl_cli.data.views import WorkerCrops
from effvl_cli.engines.common.plans import optimizers_of, plan_of
from effvl_cli.engines.pretrain.costs import clock_of
from effvl_cli.engines.pretrain.images import TrainImages
from effvl_cli.engines.pretrain.methods import build_parts
from effvl_cli.engines.pretrain.probes import Probe
from effvl_cli.engines.pretrain.task import InvarianceTask
from effvl_cli.models.network import Network
from effvl_cli.techniques.pretrain.schedule import Clock, Compression, Schedule
from effvl_cli.techniques.pretrain.step_cost import Costs

COSTS = "costs.json"
STEP_SECONDS = 2.0  # for timing the steps of a compression


@dataclass(frozen=True)
class ArmTrainer:
    """What the training of one arm needs."""

    config: PretrainConfig | SearchConfig
    run: Run
    images: TrainImages
    network: Network
    costs: Costs
    maker: ViewMaker

    @classmethod
    def build(cls, config: PretrainConfig | SearchConfig, run: Run, images: TrainImages) -> "ArmTrainer":
        """Fresh networks on the device."""
        return cls(config, run, images, *build_parts(config, len(images), run.device, run.log))

    def stream_of(self, clock: Clock) -> Callable[[int], Iterator[Batch]]:
        """Training batches from any step on."""

        def crops_at(step: int) -> WorkerCrops:
            return self.maker.worker_crops(clock.stage(step).compression.patch)

        config = self.config
        return self.images.batches(config, self.run, config.batch_size, crops_at, seed=config.seed)

    def stream_for(self, batch_size: int, patch: int) -> Iterator[Batch]:
        """Batches for views of one patch size, in an order other than that of the training."""
        crops = self.maker.worker_crops(patch)
        return self.images.batches(self.config, self.run, batch_size, lambda _: crops, seed=self.config.seed + 1)(0)


@dataclass(frozen=True)
class Trained:
    """Result of the training of one arm."""

    fitted: loop.FitResult
    clock: Clock
    task: InvarianceTask


def make_clock(trainer: ArmTrainer, schedule: Schedule, budget: float) -> Clock:
    """Steps of a schedule; units are multiply-adds, or with `--cost-model time` measured seconds."""
    config, samples = trainer.config, None
    if isinstance(config, PretrainConfig) and config.cost_model == "time":
        samples = _measured(trainer, [stage.compression for stage in schedule.stages])
    return clock_of(config, trainer.costs, schedule, budget, samples)


def _measured(trainer: ArmTrainer, compressions: list[Compression]) -> list[float]:
    """Seconds per image of a step, over those of an uncompressed forward pass; measured once, kept for a resume.

    All compressions are timed together, in turn; the stored times are keyed by everything that they depend on.
    """
    path, keys = trainer.run.path(COSTS), [str(c) for c in compressions]
    about = _timed_on(trainer)
    answer: dict[str, Any] = {}
    if distributed.is_main():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            rows = json.loads(path.read_bytes())
            answer = next((row["times"] for row in rows if row["of"] == about and {*keys} <= {*row["times"]}), {})
    answer = distributed.broadcast_json(answer)
    if not answer:
        answer = distributed.broadcast_json(step_times(trainer, dict(zip(keys, compressions, strict=True))))
        if distributed.is_main():
            write_json(path, [{"of": about, "times": answer}])
    return [answer[key] for key in keys]


def _timed_on(trainer: ArmTrainer) -> dict[str, Any]:
    """What the time of a step depends on, besides the compression."""
    config, device = trainer.config, trainer.run.device
    shapes = [[name, *value.shape] for name, value in trainer.costs.method.state_dict().items()]
    return {
        "model": trainer.network.name,
        "method": config.method,
        "shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        "views": dataclasses.asdict(trainer.costs.sizes),
        "batch": config.batch_size,
        "processes": distributed.world().size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": config.precision,
        "threads": torch.get_num_threads(),
    }


def step_times(trainer: ArmTrainer, compressions: dict[str, Compression]) -> dict[str, float]:
    """Median seconds of a step's forward and backward pass, over those of a base forward pass of as many images."""
    method, config = trainer.costs.method, trainer.config
    share = config.batch_size // distributed.world().size
    batches = {
        c.patch: next(trainer.stream_for(config.batch_size, c.patch)).to(trainer.run.device)
        for c in compressions.values()
    }
    side = trainer.costs.shape.image_size
    pictures = torch.zeros(share, 3, side, side, device=trainer.run.device)

    def step(compression: Compression) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            views = trainer.maker.views(batches[compression.patch], compression, 0)
            method.loss(views, distributed.gather_with_gradient, 0.0).loss.backward()
            method.zero_grad(set_to_none=True)

    arms: dict[str, Any] = {"forward": lambda: method.backbone(pictures)}
    arms |= {key: (lambda c=c: step(c)) for key, c in compressions.items()}
    with as_found(method, training=True), loop.autocast(trainer.run.device, config.precision):
        found = bench.timed(arms, trainer.run.device, seconds=STEP_SECONDS)
    base = found["forward"].median_ms
    return {key: found[key].median_ms / base for key in compressions}


def train(trainer: ArmTrainer, schedule: Schedule, budget: float, *, phase: str, probe: Probe | None) -> Trained:
    """Train one arm to the end of its budget, from its newest checkpoint if there is one."""
    run, method = trainer.run, trainer.costs.method
    clock = make_clock(trainer, schedule, budget)
    for index in clock.skipped:
        run.warn(f"{phase}: stage {index} is shorter than one step and never occurs")
    if isinstance(trainer.config, PretrainConfig) and trainer.config.compile:
        compile_backbone(method, run)
    task = InvarianceTask(method, clock, trainer.maker, run, probe)
    phases = Phases.of(run)
    fitted = phases.train(phase, method, lambda: fit(trainer, task, phase=phase))
    task.meter.load_state_dict(phases.once(f"{phase} times", task.meter.state_dict))
    return Trained(fitted, clock, task)


def fit(trainer: ArmTrainer, task: InvarianceTask, *, phase: str, goes_on: bool = False) -> loop.FitResult:
    """Train to the end of a task's clock, from the newest checkpoint of the phase.

    Args:
        trainer: what is trained, and how.
        task: the training.
        phase: its name, and that of its folder of checkpoints.
        goes_on: whether this attempt has trained the phase before, with a clock that ended earlier.
    """
    config, clock = trainer.config, task.clock
    states = config.average if isinstance(config, SearchConfig) else config.keep_neighbours
    kept = [step for t in KEPT_AT for step in clock.neighbours(t, states)]
    plan = plan_of(
        config,
        clock.steps,
        t=clock.t,
        phase=phase,
        precision=config.precision,
        eval_at=frozenset({clock.step_at(0.5)} - {0}),
        milestones=frozenset(kept),
        work=clock.spent,
        hint=f", or {METHODS[config.method].hint}, or use --precision fp32",
        goes_on=goes_on,
    )
    stream = trainer.stream_of(clock)
    optimizers = optimizers_of(config, trainer.costs.method)
    return loop.fit(task, optimizers, lambda start: task.meter.timed(stream(start)), trainer.run, plan)


def save_backbone(trainer: ArmTrainer, budget: float) -> None:
    """Write the trained backbone, the run's model for users."""
    config = trainer.config
    about = {"data": config.data, "method": config.method, "budget": budget}
    trainer.run.save_model(trainer.costs.method.result.state_dict(), {**trainer.network.describe(), **about})


def stage_rows(trained: Trained, trainer: ArmTrainer) -> list[dict[str, Any]]:
    """What happened in each stage, for the report."""
    clock, meter, batch_size = trained.clock, trained.task.meter, trainer.config.batch_size
    return [
        {
            "until": clock.t(stage.first + stage.steps),
            **trainer.costs.stage(stage, batch_size),
            **meter.row(stage.index, batch_size),
        }
        for stage in clock.stages
    ]
