"""What a training of detectors will do and cost, for `--dry-run`: of the data only the annotations are read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from effvl_cli.config.detect_train import TrainingOptions
from effvl_cli.core import distributed
from effvl_cli.core.loop import autocast
from effvl_cli.core.measure import count_macs
from effvl_cli.core.modes import as_found
from effvl_cli.core.probe import seconds_for
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Table
from effvl_cli.data import SPLITS
from effvl_cli.data.boxes import BoxSource
from effvl_cli.data.files import some
from effvl_cli.data.mixing import MixedSampler
from effvl_cli.engines.common.cost_table import TRAINING, Part, cost_table, training_memory
from effvl_cli.engines.detect.box_data import open_boxes
from effvl_cli.engines.detect.box_splits import thinned
from effvl_cli.engines.detect.detector_training import length_of, period_of
from effvl_cli.engines.detect.detectors import asked_spec, spec_for
from effvl_cli.models.detector import CascadeRCNN, detector

BOXES = 4  # of an image of the probe


def preview_of(command: str, arms: Mapping[str, TrainingOptions]) -> list[Table]:
    """Costs of some arms that are trained and measured on the same data."""
    config = next(iter(arms.values()))
    run = unopened(command, config)
    for own in arms.values():
        asked_spec(own)
    train, val, test = (
        thinned(open_boxes(config, split, run, seed=config.seed), config.num_images) for split in SPLITS
    )
    costs = [_Cost(own, run, name, train) for name, own in arms.items()]
    parts = [part for cost in costs for part in cost.parts(len(val), len(test))]
    notes = [
        f"{len(train):,} training, {len(val):,} validation and {len(test):,} test images of {some(train.classes)}",
        "multiply-adds of convolutions and linear layers; images are read and resized besides",
    ]
    if config.dedup:
        notes.append("near-duplicates among the training images are found first: epochs may be shorter")
    notes += dict.fromkeys(source.remark for source in (train, val, test) if source.remark)
    memory = max(cost.memory for cost in costs)
    return [cost_table(f"{config.preset} on {config.data}", parts, run.device, memory=memory, notes=notes)]


class _Cost:
    """Of one arm.

    Attributes:
        memory: bytes of the training.
    """

    def __init__(self, config: TrainingOptions, run: Run, name: str, train: BoxSource) -> None:
        assert config.batch_size is not None and config.optimizer is not None
        self.config, self.run, self.name = config, run, name
        spec = spec_for(config, train, run, config.weights)
        self.module: CascadeRCNN = detector(spec, len(train.classes)).to(run.device)
        record = train.records[0]
        factor = min(
            spec.min_size[-1] / min(record.height, record.width), spec.max_size / max(record.height, record.width)
        )
        self.size = round(record.height * factor), round(record.width * factor)
        self.share = config.batch_size // config.accumulate // distributed.world().size
        sampler = MixedSampler(train, config.batch_size // config.accumulate, config.seed, config.epoch_size)
        self.steps = length_of(config, max(1, sampler.steps_per_epoch // config.accumulate))
        self.evaluations = 1 + self.steps // max(1, period_of(config, sampler.steps_per_epoch))
        self.memory = training_memory(self.module, config.optimizer, self._loss, self.share)

    def _noise(self, count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(3, *self.size, generator=generator).to(self.run.device) for _ in range(count)]

    def _loss(self, count: int) -> Tensor:
        height, width = self.size
        corners = torch.arange(BOXES).float()[:, None] / (2 * BOXES)
        boxes = torch.cat([corners * width, corners * height, (corners + 0.4) * width, (corners + 0.4) * height], 1)
        labels = torch.ones(BOXES, dtype=torch.int64)
        target = {"boxes": boxes.to(self.run.device), "labels": labels.to(self.run.device)}
        with autocast(self.run.device, self.config.precision):
            losses = self.module(self._noise(count), [target] * count)
        return torch.stack(list(losses.values())).sum()

    def _step(self, count: int) -> None:
        with as_found(self.module, training=True):
            self._loss(count).backward()
        self.module.zero_grad(set_to_none=True)

    def _detect(self, count: int) -> None:
        with as_found(self.module, training=False), torch.inference_mode():
            self.module(self._noise(count))

    def parts(self, val: int, test: int) -> list[Part]:
        """Training and detection."""
        device, config = self.run.device, self.config
        macs = count_macs(self.module, torch.stack(self._noise(1)))
        images = self.steps * (config.batch_size or 1)
        seconds = self.steps * config.accumulate * seconds_for(self._step, self.share, device)
        work = f"{self.steps:,} steps of {config.batch_size} images of {self.size[1]}x{self.size[0]} px"
        seen = self.evaluations * val + test
        each = seconds_for(self._detect, config.eval_batch_size, device) / config.eval_batch_size
        return [
            Part(f"train {self.name}", work, float(TRAINING * images * macs), seconds),
            Part(f"detect {self.name}", f"{seen:,} images", float(seen * macs), seen * each),
        ]
