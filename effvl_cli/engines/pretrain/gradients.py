"""Gradients of compressed and uncompressed views at a training state, or a few, and their errors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import Step
from effvl_cli.core.errors import ModelError
from effvl_cli.core.modes import as_found
from effvl_cli.data.loader import Batch
from effvl_cli.engines.pretrain.arm_training import ArmTrainer
from effvl_cli.engines.pretrain.training_states import load_state, optimizers_at
from effvl_cli.techniques.pretrain.compression_search import FULL, Estimates, scope
from effvl_cli.techniques.pretrain.gradient_error import GradientError, adam_scale, flattened
from effvl_cli.techniques.pretrain.schedule import Compression
from effvl_cli.techniques.pretrain.stage_choice import hopeless

FIRST_BATCH = 1_000_000  # views of a search are drawn as those of steps that no training reaches


@dataclass(frozen=True)
class Measured:
    """Errors at one share of the training.

    Attributes:
        errors: of each strategy.
        snr: squared norm of the expected uncompressed gradient over its variance.
        units: cost of all gradients.
    """

    errors: Estimates
    snr: float
    units: float


def measure(
    trainer: ArmTrainer, candidates: Mapping[str, Compression], states: Sequence[Step], progress: Callable[[int], Any]
) -> Measured:
    """Gradient errors of all candidates at a training state, or of the mean of their gradients at several.

    All get the same pictures and view parameters; the networks, batch norms and centre included, do not change. With
    --early-stop, strategies that are clearly worse than the best are given up on the way.

    Raises:
        ModelError: the states are of other networks, or have no second moments that --metric adam needs.
    """
    config = trainer.config
    assert isinstance(config, SearchConfig)
    collected = _Collected(trainer, config, candidates, states)
    for index in range(config.batches):
        collected.add(index)
        done = index + 1
        if config.early_stop and done % config.early_stop == 0 and done < config.batches:
            collected.give_up()
        trainer.run.check_stop()
        progress(done)
    return Measured(collected.estimates(), collected.errors.snr, collected.units)


class _Collected:
    """Gradients so far, and the strategies that are still measured."""

    def __init__(
        self,
        trainer: ArmTrainer,
        config: SearchConfig,
        candidates: Mapping[str, Compression],
        states: Sequence[Step],
    ) -> None:
        self.trainer, self.config, self.candidates, self.states = trainer, config, candidates, states
        self.method = trainer.costs.method
        load_state(self.method, states[0], config)
        self.parameters = scope(self.method, config.grad_scope)
        adam = config.metric == "adam"
        self.scales = [_scale(config, self.method, self.parameters, step) for step in states] if adam else []
        self.batch_size = config.grad_batch_size or config.batch_size
        full = trainer.costs.full
        costs = {name: trainer.costs.sample(c) / full for name, c in candidates.items()}
        self.errors = GradientError(costs, averaged=len(states))
        self.alive = list(candidates)
        patches = {c.patch for c in candidates.values()}
        self.streams = {patch: trainer.stream_for(self.batch_size, patch) for patch in patches}
        self.units = 0.0

    def add(self, index: int) -> None:
        """One more batch for each state; the uncompressed gradient comes first."""
        batches = [
            {patch: next(stream).to(self.trainer.run.device) for patch, stream in self.streams.items()}
            for _ in self.states
        ]
        full = torch.zeros(0)
        for name in self.alive:
            gradient = self._gradient(self.candidates[name], batches, index)
            if name == FULL:
                full = gradient
                self.errors.add_full(full)
            self.errors.add(name, gradient, full)

    def _gradient(self, compression: Compression, batches: Sequence[Mapping[int, Batch]], index: int) -> Tensor:
        """(P,) mean of the gradients of the states, each of a batch of its own."""
        count = len(self.states)
        total = torch.zeros(())
        for place, (step, batch) in enumerate(zip(self.states, batches, strict=True)):
            if count > 1:
                load_state(self.method, step, self.config)
            number = FIRST_BATCH + index * count + place
            views = self.trainer.maker.views(batch[compression.patch], compression, number)
            gradient = _gradient(self.method, views, self.parameters)
            if self.scales:
                gradient *= self.scales[place]
            total = gradient if count == 1 else total + gradient / count
            self.units += self.batch_size * self.trainer.costs.sample(compression)
        return total

    def give_up(self) -> None:
        """Measure no longer what is clearly worse than the best; the uncompressed gradient stays, as the reference."""
        found = {name: self.errors.estimate(name) for name in self.alive}
        lost = hopeless(found, self.config.criterion) - {FULL}
        self.alive = [name for name in self.alive if name not in lost]

    def estimates(self) -> Estimates:
        """Errors of all strategies."""
        return {name: self.errors.estimate(name) for name in self.candidates}


def _scale(config: SearchConfig, method: nn.Module, parameters: list[nn.Parameter], step: Step) -> Tensor:
    """(P,) factors of Adam's metric, from the second moments in the checkpoint; ones before the first step."""
    optimizers = optimizers_at(config, method, step, instead="--metric plain")
    state = {key: value for part in optimizers.parts for key, value in part.state.items()}
    decay = next((group["betas"][1] for group in optimizers.groups() if "betas" in group), None)
    if decay is None or any("exp_avg_sq" not in state[p] for p in parameters if p in state):
        raise ModelError(
            f"--metric adam needs the second moments of AdamW, and the run used --optimizer {config.optimizer}",
            "Give --metric plain",
        )
    moments = [
        (state[p]["exp_avg_sq"], float(state[p]["step"])) if p in state else (torch.zeros_like(p), 0.0)
        for p in parameters
    ]
    return torch.cat([adam_scale(moment, decay, steps).flatten() for moment, steps in moments])


def _gradient(method: Any, views: Any, parameters: list[nn.Parameter]) -> Tensor:
    """(P,) gradient of the loss, in float32; batch norms and centre do not change."""
    with as_found(method, training=True):
        loss = method.loss(views, distributed.gather_with_gradient, 0.5).loss
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    return flattened(parts, parameters)
