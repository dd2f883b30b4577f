"""The edit of a ViT whose blocks were split in attention and MLP: `{"kind": "halves"}`."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from effvl_cli.techniques.prune_blocks.halves import split_halves

HALVES = "halves"


def repeat(module: nn.Module, edit: Mapping[str, Any]) -> None:
    """Split the blocks, in place."""
    split_halves(module)
