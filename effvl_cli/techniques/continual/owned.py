"""Weights with an owner each: those of earlier tasks are buffers, so that nothing that trains can touch them.

arXiv 1910.06562, section 3. The parametrisation of a weight W of task t is

    W_eff = delta                     where owner == t
            base * H(score)           where 0 < owner < t
            0                         elsewhere

`delta` is the only trained tensor besides the scores; `base` holds the values of the tasks before t.
"""

import fnmatch
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .picking import PickRule, bits_of, composed, mask_of, picked

ReleaseInit = Literal["zero", "kaiming-scaled"]
FREE = 0
_SMALL_IDS = 254  # owners that a byte holds, less one id to spare


class OwnershipError(RuntimeError):
    """An invariant of the ownership does not hold: the state is damaged, or something moved a frozen weight."""


class TiedWeightsError(ValueError):
    """One weight is used by two modules, so that it cannot have one owner map."""


class OwnedWeight(nn.Module):
    """The parametrisation of one weight; register it with `wrap`.

    Every tensor has the shape of the weight: `base` (float32), `owner` (uint8; int16 beyond task 254), `delta` (the
    parametrisation's original), `score` (a parameter while task t picks) and `frozen_pick` (bool, while picks stand).

    Args:
        delta: the parameter that is parametrised.
        rule: of the scores.
    """

    steady_buffers = True  # no forward pass moves them
    base: Tensor
    owner: Tensor
    frozen_pick: Tensor | None
    score: nn.Parameter | None

    def __init__(self, delta: nn.Parameter, rule: PickRule) -> None:
        super().__init__()
        self.rule, self.task = rule, 0
        self._delta = [delta]  # in a list: it is the parametrisation's parameter, not this module's
        self.register_buffer("base", torch.zeros_like(delta, requires_grad=False))
        self.register_buffer("owner", torch.zeros(delta.shape, dtype=torch.uint8, device=delta.device))
        self.register_buffer("frozen_pick", None)
        self.register_parameter("score", None)
        self.fresh: Tensor | None = None  # where the initial value is random and stays; None: everywhere
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]
        self.refresh()

    @property
    def delta(self) -> nn.Parameter:
        """Values of the current task's own weights; zero elsewhere."""
        return self._delta[0]

    def forward(self, delta: Tensor) -> Tensor:
        """The effective weight of the current task."""
        if self.all_own:
            return delta
        if self.score is not None and self.frozen_pick is None:
            return picked(delta, self.score, self.base, self.own_bits, self.old_bits, self.rule.threshold)
        return composed(delta, self.shared, self.own_bits)

    @torch.no_grad()
    def refresh(self) -> None:
        """Derive the masks again after `owner`, `base` or `frozen_pick` changed."""
        self.outside = self.owner != self.task if self.task else torch.ones_like(self.owner, dtype=torch.bool)
        self.all_own = not bool(self.outside.any())
        self.own_bits = mask_of(~self.outside, self.base)
        picks = self.score is not None and self.frozen_pick is None
        self.old_bits = mask_of(self.old, self.base) if picks else self.own_bits[:0]
        self.shared = self.base if self.frozen_pick is None else torch.where(self.frozen_pick, self.base, 0.0)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Masks are no buffers, since they follow from others: move them along with those."""
        found = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.fresh = None if self.fresh is None else self.fresh.to(self.owner.device)
        self.refresh()
        return found

    # --- who owns what ---------------------------------------------------------------------------------------------

    @property
    def own(self) -> Tensor:
        """The current task's weights."""
        return ~self.outside

    @property
    def old(self) -> Tensor:
        """Weights of committed tasks."""
        return self.outside & (self.owner > FREE)

    @property
    def available(self) -> Tensor:
        """Own and free weights: what the task found free when it claimed."""
        return ~self.old

    def counts(self) -> dict[int, int]:
        """Number of weights of each owner, 0 for the free ones."""
        found = torch.bincount(self.owner.flatten().long(), minlength=self.task + 1)
        return dict(enumerate(found.tolist()))

    # --- the life of a task ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def load(self, base: Tensor, owner: Tensor, fresh: Tensor | None = None) -> None:
        """Take over what earlier tasks left.

        Args:
            base: their values, zero elsewhere.
            owner: ids.
            fresh: where the weight is new, because the network has grown; None: nowhere.

        Raises:
            OwnershipError: `base` is not zero on free weights.
        """
        if owner.dtype != self.owner.dtype:
            self.owner = torch.empty_like(self.owner, dtype=owner.dtype)
        self.base.copy_(base)
        self.owner.copy_(owner)
        self.fresh = torch.zeros_like(self.outside) if fresh is None else fresh.to(self.owner.device)
        self.task = 0
        self.refresh()
        if bool((self.base[self.owner == FREE] != 0).any()):
            raise OwnershipError("a free weight has a value (I2)")

    @torch.no_grad()
    def claim(
        self,
        task: int,
        *,
        picks: bool = True,
        release_init: ReleaseInit = "zero",
        generator: torch.Generator | None = None,
    ) -> None:
        """Make every free weight the task's own.

        Released weights start at zero, or at a Kaiming draw whose deviation is scaled by the root of their share of
        the tensor; new ones keep the random values that the network was built with.

        Args:
            task: id, above those of all owners.
            picks: whether the task trains scores for the old weights; without, it uses all of them.
            release_init: of released weights.
            generator: of the Kaiming draw.

        Raises:
            ValueError: the id is not above those of the owners.
        """
        last = int(self.owner.max()) if self.owner.numel() else 0
        if task <= last:
            raise ValueError(f"task {task} cannot claim: weights are owned by task {last}")
        if task > _SMALL_IDS:
            self.owner = self.owner.to(torch.int16)
        free = self.owner == FREE
        self.task = task
        self.owner.masked_fill_(free, task)
        self.frozen_pick = None
        self.score = None
        self.refresh()
        self._start_values(free, release_init, generator)
        if picks and bool(self.old.any()):
            self.score = nn.Parameter(torch.full_like(self.base, self.rule.init))
            self.refresh()

    def _start_values(self, free: Tensor, release_init: ReleaseInit, generator: torch.Generator | None) -> None:
        fresh = free if self.fresh is None else self.fresh & free
        released = free & ~fresh
        self.delta.masked_fill_(~fresh, 0.0)
        if release_init == "kaiming-scaled" and bool(released.any()):
            fan_in = self.delta[0].numel()
            deviation = math.sqrt(2 / fan_in * float(released.float().mean()))
            draw = torch.empty(self.delta.shape).normal_(0.0, deviation, generator=generator).to(self.delta)
            self.delta.copy_(torch.where(released, draw, self.delta))

    @torch.no_grad()
    def prune(self, ratio: float) -> None:
        """Release the smallest of what was available, so that `ratio` of it is free.

        floor(ratio * n + 0.5) of the n available weights are free afterwards: those free already, then the own ones of
        the smallest magnitude, the lowest flat index first among equals. Nothing is taken back.

        Args:
            ratio: in 0..1, of what was available to the task.
        """
        free = int((self.owner == FREE).sum())
        num_own = int((~self.outside).sum())
        count = min(math.floor(ratio * (free + num_own) + 0.5) - free, num_own)
        if count <= 0:
            return
        sizes = self.delta.abs().masked_fill_(self.outside, math.inf).flatten()
        released = _smallest(sizes, count).view_as(self.delta)
        self.owner.masked_fill_(released, FREE)
        self.delta.masked_fill_(released, 0.0)
        self.refresh()

    @torch.no_grad()
    def freeze_picks(self) -> None:
        """Hold the present picks; the scores are not used until `reset_scores`."""
        if self.score is not None:
            self.frozen_pick = self.score > self.rule.threshold
            self.score.requires_grad = False
            self.refresh()

    @torch.no_grad()
    def reset_scores(self) -> None:
        """Pick everything again and train the scores from their initial value."""
        self.frozen_pick = None
        if self.score is not None:
            self.score.fill_(self.rule.init).requires_grad_()
        self.refresh()

    @torch.no_grad()
    def picks(self) -> Tensor:
        """Old weights that the task uses: bool, of the weight's shape."""
        if self.frozen_pick is not None:
            return self.frozen_pick & self.old
        return self.old if self.score is None else (self.score > self.rule.threshold) & self.old

    @torch.no_grad()
    def commit(self) -> Tensor:
        """Freeze the own weights for ever and end the task.

        Returns:
            The picks, see `picks`.
        """
        found = self.picks()
        self.base = torch.where(self.outside, self.base, self.delta)
        self.delta.zero_()
        self.score, self.frozen_pick, self.task = None, None, 0
        self.fresh = torch.zeros_like(self.outside)
        self.refresh()
        return found

    # --- guards ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def clear_outside(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Zero `delta` and the optimizers' moments of it off the own weights."""
        if self.all_own:
            return
        bits_of(self.delta.data).bitwise_and_(self.own_bits)
        for optimizer in optimizers:
            for value in optimizer.state.get(self.delta, {}).values():
                if isinstance(value, Tensor) and value.shape == self.delta.shape:
                    bits_of(value).bitwise_and_(self.own_bits)

    @torch.no_grad()
    def faults(self, last: int) -> Iterator[str]:
        """Broken invariants, in words.

        Args:
            last: the largest id that an owner may have.
        """
        if bool((self.delta[self.outside] != 0).any()) and self.task:
            yield "I1: the trained tensor is not zero outside the task's own weights"
        if bool((self.base[~self.old] != 0).any()):
            yield "I2: a value is kept where no committed task owns the weight"
        if int(self.owner.max()) > last:
            yield f"I4: an owner is {int(self.owner.max())}, and the last task is {last}"


def _smallest(sizes: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest, as a stable sort chooses them, in time linear in their number.

    Args:
        sizes: (n,).
        count: 1 to n.
    """
    limit = sizes.kthvalue(count).values
    found = sizes < limit
    ties = (sizes == limit).nonzero().squeeze(1)
    found[ties[: count - int(found.sum())]] = True
    return found


def owned_names(module: nn.Module, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the weights that are shared by owner: kernels and matrices of a plain network, but for the head's.

    Args:
        module: without parametrisations.
        exclude: patterns of names that are left out, e.g. `features.0.*`.

    Raises:
        TiedWeightsError: a weight is used by two modules.
    """
    head = head_of(module)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    places: dict[int, str] = {}
    found = []
    for path, part in module.named_modules():
        attributes = ["in_proj_weight"] if isinstance(part, nn.MultiheadAttention) else []
        attributes += ["weight"] if isinstance(part, kinds) and path != head else []
        for attribute in attributes:
            value = getattr(part, attribute)
            if value is None:  # attention with keys and values of other widths has three matrices instead
                continue
            name = f"{path}.{attribute}".lstrip(".")
            if id(value) in places:
                raise TiedWeightsError(f"{places[id(value)]} and {name} are one tensor")
            places[id(value)] = name
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
                found.append(name)
    return found


def head_of(module: nn.Module) -> str:
    """Path of the classifier: the last linear layer.

    Raises:
        ValueError: there is none.
    """
    layers: list[str] = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no linear layer that could be its head")
    return layers[-1]


def wrap(module: nn.Module, exclude: Sequence[str] = (), rule: PickRule | None = None) -> dict[str, OwnedWeight]:
    """Give every weight of `owned_names` owners, in place.

    A parametrised weight is computed on every access: run a forward pass under `parametrize.cached()` where a module
    reads its weight more than once; never hold that over two backward passes.

    Returns:
        The parametrisations by the name of the weight in the plain network.

    Raises:
        TiedWeightsError: see `owned_names`.
    """
    rule = rule or PickRule()
    found = {}
    for name in owned_names(module, exclude):
        path, _, attribute = name.rpartition(".")
        part = module.get_submodule(path)
        found[name] = OwnedWeight(getattr(part, attribute), rule)
        parametrize.register_parametrization(part, attribute, found[name])
    return found
