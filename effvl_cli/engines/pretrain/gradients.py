"""Gradients of compressed and uncompressed views at one training state, and their errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import Step
from effvl_cli.core.errors import ModelError
from effvl_cli.core.modes import as_found
from effvl_cli.engines.common.plans import optimizers_of
from effvl_cli.engines.pretrain.arm_training import ArmTrainer
from effvl_cli.techniques.pretrain.compression_search import FULL, Estimates, scope
from effvl_cli.techniques.pretrain.gradient_error import GradientError, adam_scale, flattened
from effvl_cli.techniques.pretrain.schedule import Compression
from effvl_cli.techniques.pretrain.stage_choice import hopeless

FIRST_BATCH = 1_000_000  # views of a search are drawn as those of steps that no training reaches


@dataclass(frozen=True)
class Measured:
    """Errors at one training state.

    Attributes:
        errors: of each strategy.
        snr: squared norm of the expected uncompressed gradient over its variance.
        units: cost of all gradients.
    """

    errors: Estimates
    snr: float
    units: float


def measure(
    trainer: ArmTrainer, candidates: Mapping[str, Compression], step: Step, progress: Callable[[int], Any]
) -> Measured:
    """Gradient errors of all candidates at a checkpoint.

    All get the same pictures and view parameters; the networks, batch norms and centre included, do not change. With
    --early-stop, strategies that are clearly worse than the best are given up on the way.

    Raises:
        ModelError: the checkpoint is of other networks, or has no second moments that --metric adam needs.
    """
    config = trainer.config
    assert isinstance(config, SearchConfig)
    collected = _Collected(trainer, config, candidates, step)
    for index in range(config.num_grad_batches):
        collected.add(index)
        done = index + 1
        if config.early_stop and done % config.early_stop == 0 and done < config.num_grad_batches:
            collected.give_up()
        trainer.run.check_stop()
        progress(done)
    return Measured(collected.estimates(), collected.errors.snr, collected.units)


class _Collected:
    """Gradients so far, and the strategies that are still measured."""

    def __init__(
        self, trainer: ArmTrainer, config: SearchConfig, candidates: Mapping[str, Compression], step: Step
    ) -> None:
        self.trainer, self.config, self.candidates = trainer, config, candidates
        self.method = trainer.costs.method
        _load(self.method, step, config)
        self.parameters = scope(self.method, config.grad_scope)
        self.scale = _scale(config, self.method, self.parameters, step) if config.metric == "adam" else None
        self.batch_size = config.grad_batch_size or config.batch_size
        full = trainer.costs.full
        self.errors = GradientError({name: trainer.costs.sample(c) / full for name, c in candidates.items()})
        self.alive = list(candidates)
        patches = {c.patch for c in candidates.values()}
        self.streams = {patch: trainer.stream_for(self.batch_size, patch) for patch in patches}
        self.units = 0.0

    def add(self, index: int) -> None:
        """One more batch; the uncompressed gradient comes first."""
        batches = {patch: next(stream).to(self.trainer.run.device) for patch, stream in self.streams.items()}
        full = torch.zeros(0)
        for name in self.alive:
            compression = self.candidates[name]
            views = self.trainer.maker.views(batches[compression.patch], compression, FIRST_BATCH + index)
            gradient = _gradient(self.method, views, self.parameters)
            if self.scale is not None:
                gradient *= self.scale
            if name == FULL:
                full = gradient
                self.errors.add_full(full)
            self.errors.add(name, gradient, full)
            self.units += self.batch_size * self.trainer.costs.sample(compression)

    def give_up(self) -> None:
        """Measure no longer what is clearly worse than the best; the uncompressed gradient stays, as the reference."""
        found = {name: self.errors.estimate(name) for name in self.alive}
        lost = hopeless(found, self.config.criterion) - {FULL}
        self.alive = [name for name in self.alive if name not in lost]

    def estimates(self) -> Estimates:
        """Errors of all strategies."""
        return {name: self.errors.estimate(name) for name in self.candidates}


def _load(method: nn.Module, step: Step, config: SearchConfig) -> None:
    try:
        method.load_state_dict(step.model)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        hint = "Leave out --model, --image-size and head options"
        raise ModelError(f"the checkpoints of {config.run} do not fit: {reason}", hint) from error


def _scale(config: SearchConfig, method: nn.Module, parameters: list[nn.Parameter], step: Step) -> Tensor:
    """(P,) factors of Adam's metric, from the second moments in the checkpoint; ones before the first step."""
    optimizers = optimizers_of(config, method)
    try:
        optimizers.load_state_dict(step.state["optimizer"])
    except ValueError as error:
        hint = "Give the --optimizer of that run, or --metric plain"
        raise ModelError(f"the optimizer state of {config.run} does not fit: {error}", hint) from error
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
