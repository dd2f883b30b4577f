"""What each task has for itself, and a task's network as a plain one.

A task's own state is everything in the network's state dict that has no owner: norms with their running statistics,
biases, class and register tokens, positions, and the head (arXiv 1910.06562, which has no transformers).
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from .growth import IndexMap, placed, taken
from .picking import bits_of, mask_of

_PARAMETRIZED = "parametrizations."


def task_state(module: nn.Module, owned: Collection[str] = ()) -> dict[str, Tensor]:
    """The task's own tensors, as views.

    Args:
        module: plain, or wrapped by `owned.wrap`.
        owned: names of shared weights, where it is plain.
    """
    state = module.state_dict()
    return {key: value for key, value in state.items() if _PARAMETRIZED not in key and key not in owned}


@torch.no_grad()
def load_task_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    maps: Mapping[str, IndexMap] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Copy a task's own tensors into a network, in place.

    Args:
        module: plain, or wrapped.
        state: of a task, perhaps at a smaller geometry.
        maps: where the entries of a smaller tensor lie in this network's; the others keep their values.
        skip: keys that keep this network's values, such as the head's.

    Raises:
        KeyError: the network has no such tensor.
        ValueError: another shape, and no map.
    """
    own = module.state_dict()
    for key, value in state.items():
        if key in skip:
            continue
        target = own[key]
        if maps and key in maps and target.shape != value.shape:
            placed(target, value.to(target.device), maps[key])
        elif target.shape != value.shape:
            raise ValueError(f"{key} has shape {tuple(value.shape)}, and the network's is {tuple(target.shape)}")
        else:
            target.copy_(value)


def effective_weight(base: Tensor, owner: Tensor, picks: Tensor | None, task: int) -> Tensor:
    """The weight that a task computes with, contiguous.

    Args:
        base: values of all committed weights.
        owner: their owners.
        picks: bool, old weights that the task uses; None: all of them.
        task: id from 1.
    """
    old = (owner > 0) & (owner < task)
    used = (owner == task) | (old if picks is None else old & picks)
    return (bits_of(base) & mask_of(used, base)).view(base.dtype).contiguous()


def effective_weights(
    base: Mapping[str, Tensor],
    owner: Mapping[str, Tensor],
    picks: Mapping[str, Tensor] | None,
    task: int,
    maps: Mapping[str, IndexMap] | None = None,
) -> dict[str, Tensor]:
    """All weights of a task at its own geometry.

    Args:
        base: at the newest geometry.
        owner: at the newest geometry.
        picks: bool masks at the task's geometry; None or a missing name: every old weight.
        task: id from 1.
        maps: where the task's entries lie in the newest geometry; None or a missing name: it is the task's.
    """
    found = {}
    for name in base:
        place = maps.get(name) if maps else None
        values, owners = (base[name], owner[name]) if place is None else (
            taken(base[name], place),
            taken(owner[name], place),
        )  # fmt: skip
        found[name] = effective_weight(values, owners, picks.get(name) if picks else None, task)
    return found


def materialise(module: nn.Module, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> nn.Module:
    """Make a plain network of the task's geometry that task's, in place: float32, in evaluation mode.

    The tensors themselves become the network's, without a copy.

    Args:
        module: plain, built at the task's width with its number of classes.
        weights: of `effective_weights`.
        state: the task's own tensors.

    Returns:
        The module.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    module.load_state_dict({**weights, **state}, strict=True, assign=True)
    return module.eval()
