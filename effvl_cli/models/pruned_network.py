"""A network that is pruned step by step, checked against one rebuilt by name and edits, as a checkpoint is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.core.errors import ModelError
from effvl_cli.core.measure import count_macs
from effvl_cli.models import network as networks
from effvl_cli.models.edits import apply_edits
from effvl_cli.models.removed_blocks import REMOVED, blocks_removed, removals_of
from effvl_cli.techniques.prune_blocks.surgery import Removal, SurgeryError, original_paths, prune
from effvl_cli.techniques.prune_blocks.unit import Unit


@dataclass(frozen=True)
class State:
    """A network during pruning.

    Attributes:
        module: the current network.
        removals: from the network as it was built, in order.
        origins: from the path of each remaining module to its path in the network as built.
    """

    module: nn.Module
    removals: tuple[Removal, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


def begin(network: networks.Network, num_classes: int, device: torch.device) -> State:
    """The state of a network as loaded; blocks removed earlier are among its removals."""
    removals = tuple(removals_of(network.edits))
    built = build(network, [edit for edit in network.edits if edit["kind"] != REMOVED], num_classes, device)
    return State(network.module, removals, original_paths(built, removals))


def build(
    network: networks.Network, made: Sequence[Mapping[str, object]], num_classes: int | None, device: torch.device
) -> nn.Module:
    """The network by name, with random weights and these edits, in evaluation mode."""
    again = networks.build(network.name, seed=0, num_classes=num_classes)
    apply_edits(again.module, made)
    found: nn.Module = again.module.to(device).eval()
    return found


def edits_of(network: networks.Network, removals: Sequence[Removal]) -> list[dict[str, Any]]:
    """Edits in the manifest of the network without these units."""
    others = [edit for edit in network.edits if edit["kind"] != REMOVED]
    return [*others, blocks_removed(removals)] if removals else others


def check_rebuilt(network: networks.Network, state: State, num_classes: int, images: Tensor) -> None:
    """Rebuild a pruned network by name, edits and weights, as from a checkpoint, and compare bit for bit.

    Args:
        network: before the removals of `state`.
        state: after them.
        num_classes: of its head.
        images: (B, 3, H, W) on its device.

    Raises:
        ModelError: the logits differ.
    """
    rebuilt = build(network, edits_of(network, state.removals), num_classes, images.device)
    rebuilt.load_state_dict(state.module.state_dict())
    with torch.no_grad():
        same = torch.equal(rebuilt(images), state.module.eval()(images))
    if not same:
        raise ModelError(
            f"{network.name} rebuilt with the same blocks removed gives different logits", "Please report this"
        )


def cut(
    network: networks.Network, state: State, units: Sequence[Unit], images: Tensor, num_classes: int, *, step: int
) -> State:
    """Remove units from a copy of the network.

    The copy is checked against the network with the units bypassed, and against one that is built by name, edited and
    given the copy's weights, as a checkpoint is: the logits must be equal bit for bit.

    Args:
        network: before any removal.
        state: now.
        units: of it.
        images: (B, 3, H, W) for the comparison.
        num_classes: of its head.
        step: number of the removal.

    Raises:
        ModelError: a check fails.
    """
    try:
        pruned = prune(state.module, units, images, count_macs=count_macs, originals=state.origins, step=step)
    except SurgeryError as error:
        raise ModelError(f"{network.name}: {error}", "Protect these units: --protect") from error
    found = State(pruned.network, (*state.removals, *pruned.removals), pruned.originals)
    check_rebuilt(network, found, num_classes, images)
    return found
