"""Removal of units from a network, verified, and of a checkpoint's units again when it is loaded."""

from collections.abc import Sequence

from effvl_cli.core import seeds
from effvl_cli.core.errors import ModelError
from effvl_cli.core.measure import count_macs
from effvl_cli.engines.prune_blocks.context import Judged
from effvl_cli.models.halved_blocks import HALVES
from effvl_cli.models.pruned_network import State, begin, check_rebuilt
from effvl_cli.models.removed_blocks import removals_of
from effvl_cli.techniques.prune_blocks.choices import Candidate
from effvl_cli.techniques.prune_blocks.halves import split_halves, unlike_halves
from effvl_cli.techniques.prune_blocks.surgery import SurgeryError, prune

VERIFIED_BATCH = 4


def start(context: Judged) -> State:
    """The network as it was loaded, its ViT blocks split where --unit half asks for it.

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
        ModelError: there are none, or their halves do not make the network.
    """
    network, images = context.network, context.noise(VERIFIED_BATCH)
    if removals_of(network.edits):
        raise ModelError(
            f"--unit half: whole blocks of {network.name} were removed before",
            "Begin with --unit half, or leave it out",
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
    found = State(pruned.network, (*state.removals, *pruned.removals), pruned.originals)
    check_rebuilt(context.network, found, len(context.classes), images)
    return found
