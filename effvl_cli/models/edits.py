"""What was done to a network after it was built: the `edits` of a manifest, done again before its weights are loaded.

A list of `{"kind": "blocks removed", "args": [{"step", "original_path", "path_at_step", "mode"}, ...]}`, each removal
at its path after those before it, and of `{"kind": "halves"}`, which splits the blocks of a ViT in attention and MLP.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from effvl_cli.core.errors import ModelError
from effvl_cli.techniques.prune_blocks.surgery import Removal, apply_removals

REMOVED, HALVES = "blocks removed", "halves"


def blocks_removed(removals: Sequence[Removal]) -> dict[str, Any]:
    """The edit that these removals are."""
    return {"kind": REMOVED, "args": [removal.to_dict() for removal in removals]}


def removals_of(edits: Sequence[Mapping[str, Any]]) -> list[Removal]:
    """Blocks that were removed, in order.

    Raises:
        ValueError: one is not described as it should be.
    """
    return [Removal.from_dict(args) for edit in edits if edit["kind"] == REMOVED for args in edit["args"]]


def apply_edits(module: nn.Module, edits: Sequence[Mapping[str, Any]]) -> None:
    """Repeat edits on a network that was just built, in place.

    Raises:
        ModelError: an unknown kind, or one that does not fit the network.
    """
    try:
        for edit in edits:
            _apply(module, edit)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the edits of the manifest cannot be repeated: {error}",
            "The checkpoint is damaged, or of another version of effvl",
        ) from error


def _apply(module: nn.Module, edit: Mapping[str, Any]) -> None:
    if edit["kind"] == REMOVED:
        apply_removals(module, removals_of([edit]))
    elif edit["kind"] == HALVES:
        from effvl_cli.techniques.prune_blocks.halves import split_halves

        split_halves(module)
    else:
        raise ValueError(f"no kind {edit['kind']!r} is known")
