"""The network of a task under way: shared weights of the committed tasks, and what this one trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from effvl_cli.config.continual_learn import TaskOptions
from effvl_cli.core import distributed, seeds
from effvl_cli.core.errors import DistributedError, ModelError
from effvl_cli.core.optim import Optimizers
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.heads import put_head
from effvl_cli.engines.continual.plain import sgd, synchronised
from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.widths import built, shared_at, start_norms
from effvl_cli.techniques.continual.bits import content_digest
from effvl_cli.techniques.continual.owned import OwnershipError
from effvl_cli.techniques.continual.owned_network import OwnedNetwork
from effvl_cli.techniques.continual.picking import PickRule
from effvl_cli.techniques.continual.tasknet import task_state


@dataclass
class Live:
    """The network of one attempt.

    Attributes:
        owned: the network, on the device, and the owners of its weights.
        width: of the network, in parameters.
        has_own: whether the task found free weights.
    """

    owned: OwnedNetwork
    width: float
    has_own: bool

    @property
    def module(self) -> nn.Module:
        """The network, with parametrised weights."""
        return self.owned.module

    # --- training -----------------------------------------------------------------------------------------------------

    def optimizers(self, config: TaskOptions, lr: float | None, pick_lr: float) -> Optimizers:
        """SGD with decay on own weights alone, and Adam over the scores where they learn."""
        return owned_optimizers(self.owned, config, lr, pick_lr, has_own=self.has_own)

    def after_backward(self, step: int) -> None:
        """Now and then, assert that gradients of what is not the task's own are exactly zero."""
        try:
            self.owned.after_backward(step)
        except OwnershipError as error:
            _refuse(error)

    def after_update(self, optimizers: Optimizers) -> None:
        """Keep at zero what is not the task's own, its momentum too."""
        self.owned.after_step(optimizers.parts)
        if self.owned.check_every == 1:
            self.check("a step")

    def release(self, ratio: float) -> None:
        """Release the smallest weights, so that this share of what was available is free; alike on every process."""
        self.owned.prune(ratio)
        if distributed.world().size > 1:
            for weight in self.owned.tensors.values():
                distributed.broadcast(weight.owner)
                weight.refresh()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state dict that a phase ended with, whether picks stood in it or not."""
        for name, weight in self.owned.tensors.items():
            path, _, attribute = name.rpartition(".")
            stood = f"{path}.parametrizations.{attribute}.0.frozen_pick".lstrip(".") in state
            weight.frozen_pick = torch.zeros_like(weight.outside) if stood else None
            if weight.score is not None:
                weight.score.requires_grad_(not stood)
        self.module.load_state_dict(state)

    # --- results ------------------------------------------------------------------------------------------------------

    def check(self, phase: str) -> None:
        """Check that frozen weights are what they were, and that the processes agree on the owners.

        Raises:
            ModelError: they are not.
            DistributedError: they do not.
        """
        try:
            self.owned.check()
        except OwnershipError as error:
            _refuse(error, f" after {phase}")
        if distributed.world().size > 1:
            mark = int(content_digest(self.owned.owner())[:12], 16)
            if distributed.all_reduce_max(mark) != mark or distributed.all_reduce_max(-mark) != -mark:
                raise DistributedError(
                    f"the processes disagree on the owners of weights after {phase}", "Give --fresh to start anew"
                )

    def own_state(self) -> dict[str, Tensor]:
        """What belongs to the task alone: norms, biases, head, tokens."""
        return task_state(self.module)


def owned_optimizers(
    owned: OwnedNetwork, config: TaskOptions, lr: float | None, pick_lr: float, *, has_own: bool = True
) -> Optimizers:
    """SGD with decay on own weights alone, where there are any, and Adam over the scores where they learn."""
    groups = owned.groups(config.weight_decay)
    parts: list[torch.optim.Optimizer] = [sgd(groups if has_own else groups[1:], lr, config)]
    scores = owned.score_parameters()
    if pick_lr > 0 and scores:
        parts.append(torch.optim.Adam(scores, lr=pick_lr, fused=True))
    return Optimizers(parts)


def _refuse(error: Exception, where: str = "") -> NoReturn:
    raise ModelError(f"weights and owners do not fit{where}: {error}", "Give --fresh to start anew") from error


def open_live(context: Context, job: Job, state: State, width: float, attempt: int) -> Live:
    """Build the network of an attempt: committed weights in their place, free ones claimed by the task."""
    config = job.config
    network = built(context, width, job.task.name, attempt)
    shared = shared_at(context, state, network, width) if state.tasks else None
    start_norms(context, job, state, network, width)
    module: nn.Module = network.module
    put_head(module, context.head(module, job))
    module = synchronised(module.to(context.run.device), config)
    owned = OwnedNetwork(
        module,
        exclude=context.excluded,
        rule=PickRule(config.pick_init, config.pick_threshold),
        check_every=1 if config.check_steps else 50,
    )
    if shared is not None:
        owned.load(*shared)
    owned.claim(
        job.number,
        picks=config.method == "cpg" and config.pick_lr > 0,
        release_init=config.release_init,
        generator=seeds.generator(config.seed, job.task.name, "release", attempt),
    )
    has_own = any(bool(weight.own.any()) for weight in owned.tensors.values())
    for parameter in owned.own_parameters():
        parameter.requires_grad_(has_own)
    if state.tasks:
        for name in context.frozen:
            module.get_parameter(name).requires_grad_(False)
    module.train()
    return Live(owned, width, has_own)
