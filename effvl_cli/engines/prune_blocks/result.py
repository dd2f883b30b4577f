"""What a run of prune-blocks leaves for others: weights and edits, a torch.export program, rebuild.py, a table."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from effvl_cli.core import checkpoint, distributed
from effvl_cli.core.files import write_text
from effvl_cli.engines.prune_blocks.context import Context
from effvl_cli.engines.prune_blocks.surgery import State, edits_of
from effvl_cli.models import network as networks
from effvl_cli.models.constructors import NoConstructorError
from effvl_cli.models.program import PROGRAM, save_program
from effvl_cli.models.rebuild import REBUILD, write_rebuild

COLUMNS = (
    "k",
    "removed",
    "params",
    "macs",
    "params_removed",
    "macs_removed",
    "top1_score_before_ft",
    "top1_score_after_ft",
    "top1_test_before_ft",
    "top1_test_after_ft",
    "leak",
)


def pruned_network(context: Context, state: State) -> networks.Network:
    """The pruned network under its name."""
    return dataclasses.replace(context.network, module=state.module, edits=edits_of(context, state.removals))


def save(context: Context, state: State) -> None:
    """Write the checkpoint, `model.pt2` and `rebuild.py`, verified, and name them in the report.

    Raises:
        CheckError: a file gives other logits.
    """
    if not distributed.is_main():
        return
    run, network = context.run, pruned_network(context, state)
    manifest = {
        **network.describe(),
        "classes": list(context.classes),
        "data": context.data,
        "run": run.report.run_id,
        "figures": {name: {"value": m.value, "n": m.n, "se": m.se} for name, m in run.report.metrics.items()},
    }
    checkpoint.save_model(run.folder / networks.CHECKPOINT, state.module.state_dict(), manifest)
    run.report.artifact(run.folder / networks.CHECKPOINT)
    for edit in network.edits:
        run.report.edit(edit["kind"], **{"blocks": edit["args"]} if "args" in edit else {})
    write_program(context, state.module, run.folder)
    write_code(context, network, run.folder)


def write_program(context: Context, module: nn.Module, folder: Path) -> None:
    """`model.pt2`."""
    reason = save_program(module, context.network.preprocess.size, folder / PROGRAM)
    if reason:
        context.run.warn(f"{PROGRAM} takes one image at a time: {reason}")
    context.run.report.artifact(folder / PROGRAM)


def write_code(context: Context, network: networks.Network, folder: Path) -> None:
    """`rebuild.py`, where public code builds the network."""
    try:
        write_rebuild(network, folder)
    except NoConstructorError as error:
        context.run.warn(f"no {REBUILD}: {error.message}")
        return
    context.run.report.artifact(folder / REBUILD)


def write_table(context: Context, steps: Sequence[Mapping[str, Any]]) -> None:
    """`table.csv`, a row for each step; what was not measured is empty."""
    if not distributed.is_main():
        return
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    for step in steps:
        leak = context.run.report.technique["leak"]
        rows.writerow({**step, "leak": leak, "removed": " ".join(row["original_path"] for row in step["removed"])})
    write_text(context.run.folder / "table.csv", text.getvalue())
    context.run.report.artifact(context.run.folder / "table.csv")
