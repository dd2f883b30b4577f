"""Removal of units from a network, verified, and of a checkpoint's units again when it is loaded."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from effvl_cli.core import seeds
from effvl_cli.core.errors import ModelError
from effvl_cli.core.measure import count_macs
from effvl_cli.engines.prune_blocks.candidates import Candidate
from effvl_cli.engines.prune_blocks.context import Judged
from effvl_cli.models import network as networks
from effvl_cli.models.edits import apply_edits
from effvl_cli.models.halved_blocks import HALVES
from effvl_cli.models.removed_blocks import REMOVED, blocks_removed, removals_of
from effvl_cli.techniques.prune_blocks.halves import split_halves
from effvl_cli.techniques.prune_blocks.surgery import FAILURES, Removal, SurgeryError, original_paths, prune

VERIFIED_BATCH = 4
HALVED = 1e-4  # of the largest logit: halves may add in another order
PROBED = 0.05  # deviation of the noise


@dataclass(frozen=True)
class State:
    """A network on its way.

    Attributes:
        module: as it is now.
        removals: from the network as it was built, in order.
        origins: path of each module that is left, to its path in the network as it was built.
    """

    module: nn.Module
    removals: tuple[Removal, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


def start(context: Judged) -> State:
    """The network as it was loaded, its ViT blocks split where --unit half asks for it.

    Raises:
        ModelError: blocks that cannot be split.
    """
    network = context.network
    if context.config.unit == "half" and {"kind": HALVES} not in network.edits:
        _split(context)
    removals = tuple(removals_of(network.edits))
    base = _built(context, [edit for edit in network.edits if edit["kind"] != REMOVED])
    return State(network.module, removals, original_paths(base, removals))


def _split(context: Judged) -> None:
    """Split the blocks of the network, in place.

    Raises:
        ModelError: there are none, or their halves do not make the network.
    """
    network, images = context.network, context.noise(VERIFIED_BATCH)
    if removals_of(network.edits):
        raise ModelError(
            f"--unit half: whole blocks of {network.name} were removed before",
            "Begin with --unit half, or leave it out",
        )
    reason = _unlike_halves(network.module, images)
    if reason:
        raise ModelError(
            f"--unit half: {network.name} has no ViT blocks that can be split ({reason})",
            "Leave it out, or choose a plain ViT",
        )
    split_halves(network.module)
    network.edits = [*network.edits, {"kind": HALVES}]


def _unlike_halves(module: nn.Module, images: Tensor) -> str:
    """Why the halves of a network's blocks are not the network; empty where they are.

    A copy with noise on its weights is asked: as they are built, some heads are zero and some branches almost.
    """
    probe, generator = copy.deepcopy(module).eval(), seeds.generator(0, "halves")
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=PROBED)
        expected = probe(images)
        if not split_halves(probe):
            return "it has none"
        try:
            found = probe(images)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            return f"their halves cannot be run: {error}".splitlines()[0]
    limit = HALVED * float(expected.abs().max())
    return "" if bool(((found - expected).abs() <= limit).all()) else "their halves give other logits"


def cut(context: Judged, state: State, picked: Sequence[Candidate], *, step: int) -> State:
    """Remove units from a copy of the network.

    The copy is checked against the network with the units bypassed, and against one that is built by name, edited and
    given the copy's weights, as a checkpoint is: the logits must be equal bit for bit.

    Raises:
        ModelError: a check fails.
    """
    units = [candidate.unit for candidate in picked]
    images = context.noise(VERIFIED_BATCH)
    try:
        pruned = prune(state.module, units, images, count_macs=count_macs, originals=state.origins, step=step)
    except SurgeryError as error:
        raise ModelError(f"{context.network.name}: {error}", "Protect these units: --protect") from error
    removals = (*state.removals, *pruned.removals)
    _check_rebuilt(context, pruned.network, removals)
    return State(pruned.network, removals, pruned.originals)


def edits_of(context: Judged, removals: Sequence[Removal]) -> list[dict[str, object]]:
    """What the manifest of a pruned network says."""
    others = [edit for edit in context.network.edits if edit["kind"] != REMOVED]
    return [*others, blocks_removed(removals)] if removals else others


def _check_rebuilt(context: Judged, module: nn.Module, removals: Sequence[Removal]) -> None:
    rebuilt = _built(context, edits_of(context, removals))
    rebuilt.load_state_dict(module.state_dict())
    images = context.noise(VERIFIED_BATCH)
    with torch.no_grad():
        same = torch.equal(rebuilt.eval()(images), module.eval()(images))
    if not same:
        raise ModelError(
            f"{context.network.name} built anew with the same blocks removed gives other logits", "Please report this"
        )


def _built(context: Judged, made: Sequence[Mapping[str, object]]) -> nn.Module:
    """The network by name, with random weights and these edits."""
    network = networks.build(context.network.name, seed=0, num_classes=len(context.classes))
    apply_edits(network.module, made)
    found: nn.Module = network.module.to(context.run.device)
    return found
