"""A network whose weights have owners (arXiv 1910.06562), as one object that an engine holds while it learns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .bits import content_digest
from .owned import OwnedWeight, OwnershipError, ReleaseInit, wrap
from .picking import PickRule
from .tasknet import load_task_state, task_state

_STATE = ("delta", "owner", "score", "pick")


class OwnedNetwork:
    """Wraps a plain network in place; one object serves one attempt at one task.

    The network is built at the attempt's width with the task's head, its random values being the start of every new
    weight. Then: `load` what earlier tasks left, `load_task_state` of the task before, `claim`, train, `prune`,
    `commit`.

    Args:
        module: a plain classifier.
        exclude: patterns of weights without owners: they are part of each task's own state.
        rule: of the scores.
        check_every: steps between two assertions of the gradients' zeros, which cost a pass over the weights.
    """

    def __init__(
        self, module: nn.Module, *, exclude: Sequence[str] = (), rule: PickRule | None = None, check_every: int = 50
    ) -> None:
        self.module = module
        self.tensors: dict[str, OwnedWeight] = wrap(module, exclude, rule)
        self.check_every = check_every
        self.task = 0
        self.frozen = self._frozen_digest()

    # --- the life of a task ----------------------------------------------------------------------------------------

    def load(
        self, base: Mapping[str, Tensor], owner: Mapping[str, Tensor], fresh: Mapping[str, Tensor] | None = None
    ) -> None:
        """Take over the weights of earlier tasks, at this network's shapes.

        Args:
            base: values by name.
            owner: ids by name.
            fresh: where a grown network is new; None: nowhere.

        Raises:
            OwnershipError: the invariants do not hold, named by tensor.
        """
        for name, weight in self.tensors.items():
            try:
                weight.load(base[name], owner[name], fresh[name] if fresh else None)
            except OwnershipError as error:
                raise OwnershipError(f"{name}: {error}") from None
        self.frozen = self._frozen_digest()

    def claim(
        self,
        task: int,
        *,
        picks: bool = True,
        release_init: ReleaseInit = "zero",
        generator: torch.Generator | None = None,
    ) -> None:
        """Make all free weights the task's own; see `OwnedWeight.claim`."""
        for weight in self.tensors.values():
            weight.claim(task, picks=picks, release_init=release_init, generator=generator)
        self.task = task

    def prune(self, ratio: float, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Release `ratio` of what was available in every tensor; the optimizers forget the released weights."""
        for weight in self.tensors.values():
            weight.prune(ratio)
        self.after_step(optimizers)

    def freeze_picks(self) -> None:
        """Hold the present picks."""
        for weight in self.tensors.values():
            weight.freeze_picks()

    def reset_scores(self) -> None:
        """Pick everything again and train the scores."""
        for weight in self.tensors.values():
            weight.reset_scores()

    def commit(self) -> dict[str, Tensor]:
        """Freeze the task's weights; `base()` and `owner()` then hold it.

        Returns:
            The task's picks: bool masks by name.

        Raises:
            OwnershipError: an invariant does not hold.
        """
        self.check()
        picks = {name: weight.commit() for name, weight in self.tensors.items()}
        self.task = 0
        self.frozen = self._frozen_digest()
        return picks

    # --- what is trained -------------------------------------------------------------------------------------------

    def own_parameters(self) -> list[nn.Parameter]:
        """The tensors of own weights: the only ones that decay."""
        return [weight.delta for weight in self.tensors.values()]

    def score_parameters(self) -> list[nn.Parameter]:
        """Scores that are trained; none for the first task, without picking, or while picks stand."""
        scores = [weight.score for weight in self.tensors.values()]
        return [score for score in scores if score is not None and score.requires_grad]

    def task_parameters(self) -> list[nn.Parameter]:
        """Norms, biases, tokens and the head: each task's own, without weight decay."""
        shared = {id(p) for weight in self.tensors.values() for p in (weight.delta, weight.score) if p is not None}
        return [p for p in self.module.parameters() if id(p) not in shared and p.requires_grad]

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for the weights' optimizer: decay on own elements only, since `delta` is 0 elsewhere."""
        return [
            {"params": self.own_parameters(), "weight_decay": weight_decay},
            {"params": self.task_parameters(), "weight_decay": 0.0},
        ]

    # --- guards ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_backward(self, step: int = 0) -> None:
        """Assert, before any clipping, that gradients off the own weights are exactly zero.

        Raises:
            OwnershipError: one is not.
        """
        if step % self.check_every:
            return
        for name, weight in self.tensors.items():
            gradient = weight.delta.grad
            if gradient is not None and not weight.all_own and bool((gradient[weight.outside] != 0).any()):
                raise OwnershipError(f"{name}: a gradient reached weights that the task does not own")
            score = None if weight.score is None else weight.score.grad
            if score is not None and bool((score[~weight.old] != 0).any()):
                raise OwnershipError(f"{name}: a gradient reached scores of weights that are not old")

    def after_step(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Zero the trained tensors and their moments off the own weights, whatever an optimizer did."""
        parts = list(optimizers)
        for weight in self.tensors.values():
            weight.clear_outside(parts)

    def check(self) -> None:
        """Assert the invariants I1 to I4.

        Raises:
            OwnershipError: one does not hold; the message names the tensor.
        """
        for name, weight in self.tensors.items():
            for fault in weight.faults(self.task or int(weight.owner.max())):
                raise OwnershipError(f"{name}: {fault}")
        if self._frozen_digest() != self.frozen:
            raise OwnershipError("I3: a committed weight changed")

    def _frozen_digest(self) -> str:
        """Digest of the committed weights and of their owners."""
        found: dict[str, Tensor] = {}
        for name, weight in self.tensors.items():
            found[f"base/{name}"] = weight.base
            found[f"owner/{name}"] = torch.where(weight.old, weight.owner, 0)
        return content_digest(found)

    # --- what is kept ----------------------------------------------------------------------------------------------

    def base(self) -> dict[str, Tensor]:
        """Values of committed weights."""
        return {name: weight.base for name, weight in self.tensors.items()}

    def owner(self) -> dict[str, Tensor]:
        """Owner ids."""
        return {name: weight.owner for name, weight in self.tensors.items()}

    def picks(self) -> dict[str, Tensor]:
        """Old weights that the task uses."""
        return {name: weight.picks() for name, weight in self.tensors.items()}

    def counts(self) -> dict[str, dict[int, int]]:
        """Weights of each owner, by tensor."""
        return {name: weight.counts() for name, weight in self.tensors.items()}

    @torch.no_grad()
    def effective(self) -> dict[str, Tensor]:
        """The effective weights of the current task, copied."""
        return {name: weight(weight.delta).detach().clone() for name, weight in self.tensors.items()}

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Everything that the current task has changed, copied: a snapshot to return to.

        Keys: `delta/NAME`, `owner/NAME`, `score/NAME` (where the task picks), `pick/NAME` (while picks stand) and
        `task/KEY` for the rest of the network.
        """
        found: dict[str, Tensor] = {}
        for name, weight in self.tensors.items():
            parts = (weight.delta, weight.owner, weight.score, weight.frozen_pick)
            found |= {f"{kind}/{name}": part for kind, part in zip(_STATE, parts, strict=True) if part is not None}
        found |= {f"task/{key}": value for key, value in task_state(self.module).items()}
        return {key: value.detach().clone() for key, value in found.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Return to a snapshot of the same task; the parameters stay the same objects."""
        for name, weight in self.tensors.items():
            weight.delta.copy_(state[f"delta/{name}"])
            weight.owner.copy_(state[f"owner/{name}"])
            if weight.score is not None:
                weight.score.copy_(state[f"score/{name}"])
                frozen = state.get(f"pick/{name}")
                weight.frozen_pick = None if frozen is None else frozen.to(weight.owner.device, copy=True)
                weight.score.requires_grad_(frozen is None)
            weight.refresh()
        load_task_state(self.module, {k.removeprefix("task/"): v for k, v in state.items() if k.startswith("task/")})
