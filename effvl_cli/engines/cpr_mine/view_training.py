"""Trains the encoder of one view, with the encoders of others frozen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effvl_cli.config.cpr_mine_train import CprMineConfig, TrainConfig
from effvl_cli.core import distributed, loop, optim, seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.loader import loader_workers
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.common.batches import check_divides
from effvl_cli.engines.common.plans import plan_of
from effvl_cli.engines.cpr_mine.clip_batches import ClipBatch, PairLoader, PairReader, held_frames
from effvl_cli.engines.cpr_mine.clip_data import carrying
from effvl_cli.engines.cpr_mine.clip_splits import note_failures
from effvl_cli.engines.cpr_mine.clip_training import LATE, MINED, CascadeTask, Recipe
from effvl_cli.engines.cpr_mine.encoders import Encoder
from effvl_cli.engines.cpr_mine.held_views import HeldViews
from effvl_cli.engines.cpr_mine.pair_views import PairViews
from effvl_cli.engines.cpr_mine.turns import Turn, steps_of
from effvl_cli.engines.cpr_mine.window_stream import Failures, Geometry
from effvl_cli.techniques.cpr_mine.cascade_moco import CascadeMoCo, ClipViews, Objective
from effvl_cli.techniques.cpr_mine.queue import Queues

Config = CprMineConfig | TrainConfig


@dataclass(frozen=True)
class Trained:
    """What a turn gave."""

    encoder: Encoder
    about: dict[str, Any]


class Trainer:
    """Trains turns on one split.

    Args:
        config: options.
        run: of the command.
        source: training videos.
    """

    def __init__(self, config: Config, run: Run, source: ClipSource) -> None:
        self.config, self.run, self.source = config, run, source
        assert config.batch_size is not None
        check_divides(config.batch_size, "--batch-size", least=2)
        self.sampler = EpochSampler(len(source), config.batch_size, config.seed)
        self.filling = EpochSampler(len(source), config.batch_size, seeds.derive(config.seed, "fill"))
        self.held, self.failures = held_frames(source), Failures(config.on_bad, len(source))
        self.held_views = HeldViews(self.held)
        self.groups, self.labels = (torch.from_numpy(part) for part in (source.groups, source.labels))

    def train(self, turn: Turn) -> Trained:
        """Train, from the newest checkpoint if there is one, or load what an earlier attempt has trained."""
        config, run = self.config, self.run
        encoder = turn.start.copied()
        encoder.network.module.requires_grad_(True)  # it may have been a frozen partner before
        method = self._method(turn, encoder).to(run.device)
        per_epoch = self.sampler.steps_per_epoch
        steps = steps_of(turn.epochs, config.steps, per_epoch)
        recipe = Recipe(
            lambda step: turn.stages_of(step // per_epoch),
            config.self_drop,
            not config.sync_bn,
            config.seed,
            turn.phase,
        )
        loader = self._loader(turn)
        task = CascadeTask(method, self._views_of(turn), lambda: loader.stream(self.filling)(0), run, recipe)
        often: dict[str, Any] = {} if config.eval_every else {"eval_every": per_epoch}
        plan = plan_of(config, steps, phase=turn.phase, precision=config.precision, broadcast_buffers=False, **often)
        optimizers = optim.build(
            method, config.optimizer, lr=turn.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
        phases = Phases.of(run)
        stream = loader.stream(self.sampler)
        fitted = phases.train(
            turn.phase,
            method,
            lambda: loop.fit(task, optimizers, lambda start: task.meter.timed(stream(start)), run, plan),
        )
        about = phases.once(
            f"{turn.phase} figures", lambda: figures_of(task, fitted.figures, steps, self.sampler.batch_size)
        )
        warn_of_waiting(run, turn.phase, about)
        return Trained(encoder, about)

    def _method(self, turn: Turn, encoder: Encoder) -> CascadeMoCo:
        config = self.config
        assert config.queue_size is not None and config.temperature is not None and config.ema is not None
        module: nn.Module = encoder.network.module
        if config.sync_bn and distributed.world().size > 1:
            module = synchronised(module, self.run.device)
        partners = {view: partner.network.module.to(self.run.device) for view, partner in turn.partners.items()}
        dims = {encoder.view: encoder.network.module.dim}
        dims |= {view: partner.network.module.dim for view, partner in turn.partners.items()}
        queues = Queues(dims, config.queue_size, seeds.generator(config.seed, "queues", turn.phase))
        objective = Objective(
            listed=turn.listed,
            temperature=config.temperature,
            momentum=config.ema,
            loss=config.loss,
            siblings=config.siblings,
            mined_weight=config.mined_weight,
        )
        return CascadeMoCo(module, encoder.view, partners, queues, objective)

    def _encoders(self, turn: Turn) -> dict[str, Encoder]:
        return {turn.start.view: turn.start, **turn.partners}

    def _views_of(self, turn: Turn) -> Callable[[ClipBatch], ClipViews]:
        config = self.config
        assert config.augment is not None
        return PairViews(
            self._encoders(turn),
            turn.start.view,
            self.groups,
            self.labels,
            self.run.device,
            recipe=config.augment,
            turn_motion=config.flow_flip_sign,
            # only with a stride of 1 are neighbours in a clip neighbours in the video
            held=self.held_views if turn.start.clips.stride == 1 else HeldViews(None),
        )

    def _loader(self, turn: Turn) -> PairLoader:
        config, clips = self.config, turn.start.clips
        context = max(make_view(view).context for view in self._encoders(turn))
        geometry = Geometry(clips.frames, clips.stride, context)
        source = carrying(config, self.run, self.source, list(self._encoders(turn)))
        held = self.held if source is self.source else None
        reader = PairReader(source, geometry, held, on_bad=config.on_bad, seed=config.seed)
        workers = loader_workers(config.workers, self.run.device.type)
        return PairLoader(reader, self.failures, workers=workers, seed=config.seed)

    def note_failures(self) -> None:
        """Put the videos that could not be read into the report."""
        note_failures(self.run, self.source, self.failures)


def figures_of(task: CascadeTask, figures: Mapping[str, float], steps: int, batch_size: int) -> dict[str, Any]:
    """What the report says of a training; times are those of the attempt that finished it."""
    times = task.meter.row(0, batch_size)
    sizes = sorted(int(name.rpartition("_k")[2]) for name in figures if name.startswith("mined_rows_k"))
    return {
        "steps": steps,
        "clips": steps * batch_size,
        "loss": figures.get("loss"),
        "mined": [{"k": k, **{name: figures[f"{name}_k{k}"] for name in MINED}} for k in sizes],
        "mining_s": task.mining_s if times["wall_s"] else None,
        **times,
    }


def warn_of_waiting(run: Run, phase: str, about: Mapping[str, Any]) -> None:
    """Advise the cache of views where training has waited for clips."""
    waited = about["data_wait_fraction"]
    if waited is not None:
        run.log(f"{phase}: {waited:.0%} of the time went into waiting for clips")
        if waited > LATE:
            run.warn(f"{phase} waited for clips {waited:.0%} of the time: raise --workers, or give --cache-views")


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module, its batch norm over all processes.

    Raises:
        UsageError: on a CPU, where torch has none.
    """
    if device.type != "cuda":
        raise UsageError("--sync-bn needs GPUs", "Leave it out: keys are shuffled between the processes instead")
    found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return found
