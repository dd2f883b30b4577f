"""Linear probe by SGD on stored features: several settings side by side, the best on held-out training videos."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.config.cpr_mine_eval import ProbeOptions
from effvl_cli.core import loop, seeds
from effvl_cli.core.optim import Optimizers, RateCurve
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.common.batches import check_divides, in_memory
from effvl_cli.techniques.cpr_mine.evaluation_heads import FeatureHeads

MOMENTUM = 0.9
DECAY = RateCurve("step", milestones=(0.6, 0.8), gamma=0.1)
HELD_OUT = 0.1  # share of the training videos that a setting is chosen on


@dataclass(frozen=True)
class Setting:
    """A peak learning rate and a weight decay."""

    lr: float
    weight_decay: float


class HeadsTask(loop.Task):
    """Cross entropy of all heads, whose gradients are independent."""

    def __init__(self, heads: FeatureHeads, features: Tensor, labels: Tensor) -> None:
        self.module, self.features, self.labels = heads, features, labels

    def train_step(self, batch: Tensor, step: int) -> loop.StepOutput:
        """Sum over the heads; a batch holds numbers of training videos."""
        rows = batch.to(self.features.device)
        logits, labels = self.module(self.features[rows]), self.labels[rows]
        return loop.StepOutput(torch.stack([F.cross_entropy(each, labels) for each in logits]).sum())


def feature_probe(
    config: ProbeOptions, run: Run, name: str, features: Tensor, labels: Tensor, num_classes: int, *, seed: int
) -> tuple[FeatureHeads, Setting]:
    """Train batch norm and a linear layer on all training videos, with the setting that held-out ones choose.

    Args:
        config: grid, epochs and batch size.
        run: device.
        name: of its phases, unique in the run.
        features: (M, D).
        labels: (M,) in 0..num_classes-1.
        num_classes: C.
        seed: of the order and the held-out videos.

    Returns:
        One head, in evaluation mode, and its setting.
    """
    settings = [Setting(*pair) for pair in itertools.product(config.probe_lr, config.probe_weight_decay)]
    chosen = settings[0]
    held_out = torch.randperm(len(labels), generator=seeds.generator(seed, "held-out"))[: round(HELD_OUT * len(labels))]
    if len(settings) > 1 and len(held_out):
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[held_out] = False
        parts = (features[kept], labels[kept])
        heads = _fit(config, run, f"{name}-grid", *parts, num_classes, settings, seed=seed)
        with torch.no_grad():
            predicted = heads(features[held_out].to(run.device)).argmax(2).cpu()
        right = (predicted == labels[held_out]).float().mean(1)
        chosen = settings[int(right.argmax())]
    return _fit(config, run, name, features, labels, num_classes, [chosen], seed=seed), chosen


def _fit(
    config: ProbeOptions,
    run: Run,
    name: str,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: Sequence[Setting],
    *,
    seed: int,
) -> FeatureHeads:
    """Heads trained with these settings, in evaluation mode."""
    with seeds.global_stream(seed, "probe"):
        heads = FeatureHeads(len(settings), features.shape[1], num_classes).to(run.device)
    size = min(config.probe_batch_size, len(labels))
    check_divides(size, "--probe-batch-size", least=2)  # batch norm needs two
    sampler = EpochSampler(len(labels), size, seed)
    steps = config.probe_epochs * sampler.steps_per_epoch
    groups = [
        {"params": list(head.parameters()), "lr": setting.lr, "weight_decay": setting.weight_decay}
        for head, setting in zip(heads.heads, settings, strict=True)
    ]
    optimizers = Optimizers([torch.optim.SGD(groups, lr=settings[0].lr, momentum=MOMENTUM)])
    task = HeadsTask(heads, features.to(run.device), labels.to(run.device))
    plan = loop.Plan(steps=steps, rate=lambda step: DECAY(step / steps), phase=name, log_every=max(1, steps // 20))
    batches = in_memory(sampler, lambda numbers: numbers)
    Phases.of(run).train(name, heads, lambda: loop.fit(task, optimizers, batches, run, plan))
    return heads
