"""The edit of a network that lost blocks: `{"kind": "blocks removed", "args": [REMOVAL, ...]}`.

A removal is `{"step", "original_path", "path_at_step", "mode"}`, at its path after those before it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from effvl_cli.techniques.prune_blocks.surgery import Removal, apply_removals

REMOVED = "blocks removed"


def blocks_removed(removals: Sequence[Removal]) -> dict[str, Any]:
    """The edit that these removals are."""
    return {"kind": REMOVED, "args": [removal.to_dict() for removal in removals]}


def removals_of(edits: Sequence[Mapping[str, Any]]) -> list[Removal]:
    """Blocks that were removed, in order.

    Raises:
        ValueError: one is not described as it should be.
    """
    return [Removal.from_dict(args) for edit in edits if edit["kind"] == REMOVED for args in edit["args"]]


def repeat(module: nn.Module, edit: Mapping[str, Any]) -> None:
    """Remove the blocks of an edit, in place."""
    apply_removals(module, removals_of([edit]))
