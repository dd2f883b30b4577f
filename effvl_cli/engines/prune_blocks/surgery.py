"""Removal of units from a network, verified, and of a checkpoint's units again when it is loaded."""

from collections.abc import Sequence

from effvl_cli.core import seeds
from effvl_cli.core.errors import ModelError
from effvl_cli.engines.prune_blocks.context import Judged
from effvl_cli.models import pruned_network
from effvl_cli.models.halved_blocks import HALVES
from effvl_cli.models.pruned_network import State, begin
from effvl_cli.models.removed_blocks import removals_of
from effvl_cli.techniques.prune_blocks.choices import Candidate
from effvl_cli.techniques.prune_blocks.halves import split_halves, unlike_halves

VERIFIED_BATCH = 4


def start(context: Judged) -> State:
    """The network as loaded, its ViT blocks split with --unit half.

    Raises:
        ModelError: blocks that cannot be split.
    """
    network = context.network
    if context.config.unit == "half" and {"kind": HALVES} not in network.edits:
        _split(context)
    return begin(network, len(context.classes), context.run.device)


def _split(context: Judged) -> None:
    """Split the blocks of the network, in place.

    Raises:
        ModelError: there are none, or the halves do not compute the same.
    """
    network, images = context.network, context.noise(VERIFIED_BATCH)
    if removals_of(network.edits):
        raise ModelError(
            f"--unit half: whole blocks of {network.name} have been removed before",
            "Start with --unit half, or leave it out",
        )
    reason = unlike_halves(network.module, images, seeds.generator(0, "halves"))
    if reason:
        raise ModelError(
            f"--unit half: {network.name} has no ViT blocks that can be split ({reason})",
            "Leave it out, or choose a plain ViT",
        )
    split_halves(network.module)
    network.edits = [*network.edits, {"kind": HALVES}]


def cut(context: Judged, state: State, picked: Sequence[Candidate], *, step: int) -> State:
    """Remove candidates from a copy of the network, and check it; see `pruned_network.cut`."""
    units = [candidate.unit for candidate in picked]
    images = context.noise(VERIFIED_BATCH)
    return pruned_network.cut(context.network, state, units, images, len(context.classes), step=step)
