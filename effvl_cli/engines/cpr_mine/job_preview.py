"""Cost of the trainings, for `--dry-run`: of the data only the index is opened."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from effvl_cli.config.cpr_mine_train import CprMineConfig, TrainConfig
from effvl_cli.core import measure
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Table
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.common.cost_table import TRAINING, Part, cost_table, part, speed_of, training_memory
from effvl_cli.engines.cpr_mine.alternation import order_of, stages_for
from effvl_cli.engines.cpr_mine.cascades import named
from effvl_cli.engines.cpr_mine.clip_data import open_clips
from effvl_cli.engines.cpr_mine.encoders import fresh_encoder
from effvl_cli.engines.cpr_mine.turns import epochs_of, steps_of

PROBED = 8  # clips of a probe


@dataclass(frozen=True)
class _View:
    """Multiply-adds of a clip through the encoder of a view, how many a second, and bytes of its training."""

    macs: int
    speed: float
    memory: int


class _Costs:
    """What clips cost in each view."""

    def __init__(self, config: CprMineConfig | TrainConfig, run: Run, views: Sequence[str]) -> None:
        assert config.batch_size is not None
        self.config, self.run, self.batch = config, run, config.batch_size
        self.views = {view: self._of(view) for view in views}

    def _of(self, view: str) -> _View:
        config, device = self.config, self.run.device
        encoder = fresh_encoder(config, view)
        clips, module = encoder.clips, encoder.network.module.to(device)
        shape = (make_view(view).channels, clips.frames, clips.size, clips.size)
        noise = torch.zeros(min(PROBED, self.batch), *shape, device=device)
        macs = measure.count_macs(module, noise[:1])
        speed = speed_of(module, module, noise, macs, config.precision)
        memory = training_memory(
            module, config.optimizer, lambda count: module(noise[:1].expand(count, *shape)).sum(), self.batch
        )
        return _View(macs, speed, memory)

    def turn(self, name: str, view: str, partners: Sequence[str], steps: int) -> Part:
        """A training: forward and backward pass of the query, forward passes of the key and of the partners."""
        clips = steps * self.batch
        own = self.views[view]
        macs = (TRAINING + 1) * own.macs + sum(self.views[other].macs for other in partners)
        return part(name, f"{steps:,} steps of {self.batch} clips", float(macs) * clips, own.speed)

    def features(self, name: str, view: str, clips: int) -> Part:
        """Clips through an encoder once."""
        own = self.views[view]
        return part(name, f"{clips:,} clips", float(own.macs) * clips, own.speed)

    @property
    def memory(self) -> int:
        """Of the largest training."""
        return max(view.memory for view in self.views.values())


def preview(config: CprMineConfig) -> list[Table]:
    """Of the whole job."""
    run = unopened("cpr-mine", config)
    train, test = (open_clips(config, split) for split in ("train", "test"))
    assert config.batch_size is not None
    per_epoch = EpochSampler(len(train), config.batch_size, config.seed).steps_per_epoch
    costs, names = _Costs(config, run, config.views), named(config.views)
    parts = []
    if config.pretrain_epochs is not None:
        steps = config.pretrain_epochs * per_epoch
        parts += [costs.turn(f"InfoNCE {names[view]}", view, (), steps) for view in config.views]
    steps = steps_of(config.epochs, config.steps, per_epoch)
    for arm in config.arms:
        for view in order_of(config):
            others = [other for other in config.views if other != view]
            stages_for(config, run, arm, view, others, epochs_of(config.epochs, config.steps, per_epoch))
            used = {"infonce": [], "coclr": others[:1], "cpr": others}[arm]
            parts.append(costs.turn(f"{arm} {names[view]}", view, used, config.num_cycles * steps))
    first = order_of(config)[0]
    seen = len(config.arms) * (len(train) + len(test)) + len(train)
    parts.append(costs.features("features", first, seen))
    notes = (f"{len(train):,} training and {len(test):,} test videos; without decoding and views",)
    return [cost_table(f"{config.model} on {config.data}", parts, run.device, memory=costs.memory, notes=notes)]


def preview_training(config: TrainConfig, view: str, partners: Sequence[str]) -> list[Table]:
    """Of `train`."""
    run = unopened("cpr-mine train", config)
    train = open_clips(config, "train")
    assert config.batch_size is not None
    per_epoch = EpochSampler(len(train), config.batch_size, config.seed).steps_per_epoch
    costs = _Costs(config, run, [view, *partners])
    parts = [costs.turn(view, view, partners, steps_of(config.epochs, config.steps, per_epoch))]
    notes = (f"{len(train):,} training videos; without decoding and views",)
    return [cost_table(f"{config.model} on {config.data}", parts, run.device, memory=costs.memory, notes=notes)]
