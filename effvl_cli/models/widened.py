"""The edit of a network that was enlarged: `{"kind": "widened", "args": {"width": M, "round_to": R}}`."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from effvl_cli.techniques.continual.widening import widen

WIDENED = "widened"


def widened(width: float, round_to: int = 1) -> dict[str, Any]:
    """The edit that multiplies parameters by about `width`."""
    return {"kind": WIDENED, "args": {"width": width, "round_to": round_to}}


def repeat(module: nn.Module, edit: Mapping[str, Any]) -> None:
    """Enlarge a network, in place."""
    widen(module, float(edit["args"]["width"]), int(edit["args"]["round_to"]))
