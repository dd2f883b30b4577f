"""Cost and accuracy along the steps of a removal, as rows of the report; ours, for arXiv 2312.16904."""

from collections.abc import Mapping, Sequence
from typing import Any

from .surgery import ORIGINAL

FINAL = "final"


def pareto_points(
    steps: Sequence[Mapping[str, Any]],
    before: float,
    after: float,
    original: Mapping[str, int],
    latencies: Mapping[tuple[str, str], float],
    first: str = ORIGINAL,
) -> list[dict[str, Any]]:
    """Cost and accuracy of the original network, of each step, and of the result if it was trained further.

    Args:
        steps: as in the report.
        before: test top-1 of the original network.
        after: the same of the result.
        original: `params` and `macs` of the original network.
        latencies: milliseconds by network and runtime; missing ones become None.
        first: name of the original network in these.
    """
    rows: list[dict[str, Any]] = [{"step": 0, **original, "top1": before}]
    rows += [
        {
            "step": row["removed"][0]["step"],
            "params": row["params"],
            "macs": row["macs"],
            "top1": row["top1_test_after_ft"],
        }
        for row in steps
        if not row.get("rejected")
    ]
    for row in rows:
        name = f"step {row['step']}" if row["step"] else first
        row |= {
            f"latency_{short}": latencies.get((name, runtime))
            for short, runtime in (("torch", "torch"), ("ort", "onnxruntime"))
        }
    return rows if after == rows[-1]["top1"] else [*rows, rows[-1] | {"step": FINAL, "top1": after}]
